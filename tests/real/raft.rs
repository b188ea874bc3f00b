//! Three OpenBao nodes on one raft, whose leaders die under load: who can wait loses nothing, who cannot learns why, and a
//! new leader is not met by everybody at once.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use tonic::Code;

use crate::support::load::{Call, Load};
use crate::support::openbao::{OpenBao, leader};
use crate::support::provider::{Login, Provider, Setup};
use crate::support::wait::{LONG, until};

/// Callers and how long they wait. The first outlast an election of two to three seconds, the second are API servers,
/// which may not, the last never do.
const CALLERS: [(usize, Duration); 3] =
    [(16, Duration::from_secs(5)), (4, Duration::from_secs(3)), (4, Duration::from_secs(1))];
/// Between two rounds of a caller.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two calls that do not wait for one another, as when an API server fills its caches, and how long each waits.
const APART: Duration = Duration::from_millis(20);
const ARRIVAL: Duration = Duration::from_secs(5);
/// How many of those an election holds up at least: it takes longer than a second.
const HELD_UP: usize = 50;
/// By when all of them are answered once the first one is: they go together.
const DRAINED: Duration = Duration::from_secs(1);
const KILLS: usize = 5;
/// No election is over as soon as this after a kill, and what was under way then has failed.
const SETTLED: Duration = Duration::from_millis(300);
/// What a call may still need when the first one is answered by the new leader: a hundred and more wait with it.
const EXCHANGE: Duration = Duration::from_millis(400);
/// How long after a node leads the first call may be answered: whoever waits is behind a trial that comes soon.
const NOTICED: Duration = Duration::from_millis(750);
/// In which the rate is measured.
const WINDOW: Duration = Duration::from_millis(200);
/// What the rate may be above twice the steady one, as a part of that: the window is short.
const UNSTEADY: f64 = 0.1;
/// The least that a leader is asked in a window by all of these callers: fewer are no load, or were not counted.
const LOADED: usize = 20;
/// What it is asked when it is killed: half of what these callers ask for when nothing holds them up. While the machine does, the
/// rate is too low to be compared with.
const STEADY: usize = 29;
/// Exchanges for calls in one second without a leader, and a few more at first: one at a time, after pauses that grow to a
/// third of a second for each address, each perhaps with a redirect. Everybody at once would be a hundred.
const TRIALS: f64 = 20.0;
const FIRST_TRIALS: f64 = 10.0;

/// One leader's death.
struct Election {
    /// Who led before and after.
    nodes: [usize; 2],
    killed: Instant,
    killed_at: SystemTime,
    /// When a node said that it leads.
    elected: Instant,
}

/// What this node was asked in a mean window of the two seconds before then.
fn steady_rate(node: &OpenBao, until: SystemTime) -> usize {
    let asked = node.asked(until - WINDOW * 10);
    asked.iter().filter(|at| **at < until).count() / 10
}

/// The leader, once it is asked at a steady rate.
async fn loaded(nodes: &[OpenBao]) -> usize {
    until("a steady load", LONG, async || {
        let at = leader(nodes).await;
        match steady_rate(&nodes[at], SystemTime::now()) {
            rate if rate >= STEADY => Ok(at),
            rate => {
                tokio::time::sleep(Duration::from_millis(400)).await;
                Err(format!("{rate} requests in {WINDOW:?}"))
            }
        }
    })
    .await
}

/// Exchanges with OpenBao for calls so far, at each of these moments.
type Samples = Vec<(Instant, f64)>;

async fn sample(provider: Arc<Provider>) -> Samples {
    let mut samples = Samples::new();
    while Arc::strong_count(&provider) > 1 {
        let metric = "bao_kms_openbao_attempts_total";
        let both = [r#"purpose="encrypt""#, r#"purpose="decrypt""#].map(|purpose| [purpose]);
        let sum = provider.sum(metric, &both[0]).await + provider.sum(metric, &both[1]).await;
        samples.push((Instant::now(), sum));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    samples
}

// === impl Election ===

impl Election {
    /// The first success of any caller.
    fn over(&self, calls: &[Call]) -> Instant {
        let after = calls.iter().filter(|call| call.refusal.is_none() && call.ended > self.killed + SETTLED);
        after.map(|call| call.ended).min().expect("calls go on")
    }

    /// What is wrong with a call that failed in it, if anything: its time has to be up before there was anybody to answer,
    /// and its caller has to be told why.
    fn wrong(&self, call: &Call, over: Instant) -> Option<String> {
        let (code, message) = call.refusal.as_ref()?;
        let reasons = ["unreachable", "no_leader", "connection_lost", "timeout"];
        let told = *code == Code::DeadlineExceeded
            && message.contains("slow part: ")
            && reasons.iter().any(|reason| message.contains(reason));
        let wrong = match told {
            _ if call.due() >= over + EXCHANGE => "lost without need",
            false => "not told why",
            true => return None,
        };
        let since = |at: Instant| at.saturating_duration_since(self.killed);
        let (began, ended, over) = (since(call.began), since(call.ended), since(over));
        let waits = call.patience;
        Some(format!("{wrong}: from {began:?} to {ended:?} of {over:?}, waits {waits:?}: {code:?} {message}"))
    }

    /// The most that the new leader was asked in any window, and what the one before was asked in a mean one.
    fn rates(&self, nodes: &[OpenBao]) -> (usize, usize) {
        let [before, after] = self.nodes.map(|at| &nodes[at]);
        let met = after.asked(self.killed_at);
        let soon = met.iter().filter(|at| **at < self.killed_at + WINDOW * 50);
        let within = |from: SystemTime| met.iter().filter(|at| (from..from + WINDOW).contains(*at)).count();
        (soon.map(|from| within(*from)).max().expect("it was asked"), steady_rate(before, self.killed_at))
    }
}

/// An election takes a few seconds, in which no node serves; a caller that waits for five loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn leaders_die_under_load_and_no_call_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut nodes = OpenBao::cluster(folder.path()).await;
    nodes[0].provision().await;
    let mut setup = Setup::new(folder.path(), &nodes[0], Login::Jwt);
    let urls: Vec<_> = nodes.iter().map(|node| node.url.clone()).collect();
    setup.pipeline()["backend"]["transit"]["endpoints"] = json!(urls);
    setup.pipeline()["health"]["tolerance"] = json!("3m");
    let provider = Arc::new(setup.start());
    let key_id = provider.status("ok").await;
    let client = provider.connect().await;
    let mut load = Load::default();
    for (callers, patience) in CALLERS {
        load.add(&client, callers, patience, PAUSE);
    }
    load.arrive(&client, APART, ARRIVAL).await;
    let arriving = Instant::now();
    let samples = tokio::spawn(sample(provider.clone()));

    let mut elections = Vec::new();
    for _ in 0..KILLS {
        // The one that was killed must know all of the log before it may lead again, and the load has to be steady.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = loaded(&nodes).await;
        let (killed, killed_at) = (Instant::now(), SystemTime::now());
        nodes[before].kill();
        let after = leader(&nodes).await;
        elections.push(Election { nodes: [before, after], killed, killed_at, elected: Instant::now() });
        let rounds = load.rounds();
        until("calls to go on", LONG, async || match load.rounds() {
            now if now > rounds + 100 => Ok(()),
            now => Err(format!("{} rounds", now - rounds)),
        })
        .await;
        nodes[before].start().await;
        assert_eq!(provider.recovers(Instant::now()).await, key_id, "the tolerance spans an election");
    }
    let calls = load.end().await;
    let arrived = calls.iter().filter(|call| call.arrival).count();
    let expected = arriving.elapsed().as_secs_f64() / APART.as_secs_f64();
    assert!(arrived as f64 > expected / 2.0, "{arrived} calls came by themselves, not {expected}");
    drop(provider);
    let samples = samples.await.expect("samples");

    let mut wrong = Vec::new();
    for call in calls.iter().filter(|call| call.refusal.is_some()) {
        let met = elections.iter().map(|election| (election, election.over(&calls)));
        let met = met.into_iter().find(|(met, over)| met.killed < call.ended && call.began < *over);
        match met {
            Some((election, over)) if call.patience < CALLERS[0].1 => wrong.extend(election.wrong(call, over)),
            _ => wrong.push(format!("lost: {call:?}")),
        }
    }
    for election in &elections {
        let over = election.over(&calls);
        let lost = calls
            .iter()
            .filter(|call| call.refusal.is_some() && (election.killed..over + EXCHANGE).contains(&call.ended));
        assert!(lost.clone().count() > 0, "nobody was in a hurry: this election proves nothing");
        let inside: Vec<_> = samples
            .iter()
            .filter(|(at, _)| (election.killed + SETTLED..over).contains(at))
            .map(|(_, sum)| sum)
            .collect();
        let trials = inside.last().copied().unwrap_or(&0.0) - inside.first().copied().unwrap_or(&0.0);
        let waited = calls.iter().filter(|call| call.arrival && call.began < over && call.ended >= over);
        let (held_up, drained) = (waited.clone().count(), waited.map(|call| call.ended - over).max());
        let drained = drained.expect("calls that wait");
        let (busiest, steady) = election.rates(&nodes);
        eprintln!(
            "a leader after {:?}, an answer after {:?}; {} calls ended early, {held_up} arrivals waited, {drained:?} more; {trials} trials; \
             {busiest} requests in the busiest {WINDOW:?}, {steady} in a steady one",
            election.elected - election.killed,
            over - election.killed,
            lost.count(),
        );
        if over > election.elected + NOTICED {
            wrong.push(format!("no call was answered for {:?} while a node led", over - election.elected));
        }
        let most = FIRST_TRIALS + TRIALS * (over - election.killed).as_secs_f64();
        assert!(trials <= most, "{trials} exchanges while no leader answered: callers wait behind one of them");
        assert!(held_up >= HELD_UP, "{held_up} calls that waited could hardly be a burst");
        assert!(drained < DRAINED, "the last of {held_up} was answered {drained:?} after the first");
        assert!(steady >= LOADED, "{steady} requests in {WINDOW:?} are no rate");
        let most = 2.0 * steady as f64 * (1.0 + UNSTEADY);
        assert!(busiest as f64 <= most, "{busiest} requests in {WINDOW:?}, {steady} before");
    }
    assert!(wrong.is_empty(), "{} calls:\n{}", wrong.len(), wrong.join("\n"));
}
