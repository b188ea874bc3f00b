//! Mixed load with a fault every few seconds, from a seeded schedule, and what operators do between: no wrong plaintext, no
//! key_id that goes back, no leak, and no failure of another class than the fault of its time may cause. Short by default;
//! `BAO_KMS_SOAK_SECONDS` makes it as long as one likes, `BAO_KMS_SOAK_SEED` repeats one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::Fault;
use rustix::process::Signal;
use serde_json::json;

use super::handover::{Service, load, quiet};
use super::soak_beside::Beside;
use super::support::{Holds, PATIENCE, Stage, eventually, status_until};

const CALLERS: usize = 8;
/// What fails this long after a fault is over is no longer its doing.
const AFTERMATH: Duration = Duration::from_secs(2);
/// Between two faults: longer than the aftermath, so that there is always a time without excuse.
const BETWEEN: Duration = Duration::from_secs(4);
/// The same in a run of ten minutes and more.
const BETWEEN_LONG: Duration = Duration::from_secs(20);
/// What anonymous memory may swing by between two looks, in KiB: a few buffers more or less, not a trend.
const GROWTH: u64 = 4 * 1024;
/// How many tasks the program runs.
const TASKS: &str = "bao_kms_runtime_tasks";
/// What they may swing by between two looks: a few for each connection and each call under way, not one for each of many
/// calls that are over.
const SWING: u64 = 32;

/// What threads may swing by: those that may block stay for as long as there is work for one of them, and two that were
/// busy at once take turns.
const THREADS: u64 = 2;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Numbers that a seed fixes (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Injects one fault, leaves it for a while, takes it away again.
async fn fault(stage: &Stage, numbers: &mut Numbers) -> &'static str {
    let (server, state) = (&stage.server, stage.server.state());
    let path = ["transit/encrypt", "transit/decrypt", "transit", ""][numbers.below(4) as usize];
    let reply = |status, text: &str| Fault::Reply { status, body: format!("{{\"errors\":[\"{text}\"]}}") };
    let (name, fault) = match numbers.below(10) {
        0 => ("503", Some(reply(503, "node is not active"))),
        1 => ("429", Some(reply(429, "rate limit quota exceeded"))),
        2 => ("500", Some(reply(500, "internal error"))),
        3 => ("reset", Some(Fault::Reset)),
        4 => ("reset mid body", Some(Fault::ResetMidBody)),
        5 => ("delay", Some(Fault::Delay(Duration::from_millis(200)))),
        6 => ("malformed", Some(Fault::Malformed)),
        7 => ("hang", Some(Fault::Hang)),
        8 => {
            state.seal();
            ("seal", None)
        }
        _ => {
            state.revoke_all_tokens();
            ("revocation", None)
        }
    };
    if let Some(fault) = fault {
        server.faults().add(path, fault);
    }
    tokio::time::sleep(Duration::from_millis(100 + numbers.below(900))).await;
    server.faults().clear();
    state.unseal();
    name
}

/// What a call that meets this fault may end with, in the program's words. What counts as an attempt ends a call by itself;
/// what did no work is repeated until the call's time is up. Only what never answers may leave a call without a reason. A
/// delay is shorter than any call's time and a revocation is a login: neither may cost a call more than that.
fn may_end_with(fault: &str) -> &'static [&'static str] {
    match fault {
        "503" => &["deadline_exceeded because of no_leader"],
        "429" => &["rate_limited", "deadline_exceeded because of rate_limited"],
        "500" => &["server_error", "deadline_exceeded because of server_error"],
        "reset" | "reset mid body" => &["connection_lost", "deadline_exceeded because of connection_lost"],
        "malformed" => &["bad_reply", "deadline_exceeded because of bad_reply"],
        "hang" => &["deadline_exceeded", "deadline_exceeded because of timeout"],
        "seal" => &["deadline_exceeded because of sealed"],
        "delay" | "revocation" => &[],
        other => panic!("{other} is no fault of the schedule"),
    }
}

/// The class of a failed round in the program's words, with the reason where one is given; `None` when the program did not
/// answer.
fn class(text: &str) -> Option<String> {
    let message = text.split_once("message: \"")?.1.split('"').next()?;
    let class = message.split_once(": ")?.0;
    let reason = message.split_once("(because of ").and_then(|(_, rest)| rest.split_once(')'));
    Some(reason.map_or_else(|| class.to_owned(), |(reason, _)| format!("{class} because of {reason}")))
}

/// What an operator does; no call may fail for it.
async fn deed(at: usize, stage: &Stage, service: &mut Service) {
    match at {
        // While the process that is measured at the end is still to come.
        0 => {
            service.signal(Signal::USR2);
            tokio::task::block_in_place(|| service.replaced());
        }
        at if at % 3 == 1 => {
            let attempts = 3 + at % 2;
            let config =
                config(stage).replace("layers: {}", &format!("layers: {{ retry: {{ maxAttempts: {attempts} }} }}"));
            stage.write("config.yaml", &config);
            service.signal(Signal::HUP);
        }
        at if at % 3 == 2 => {
            let rotate = format!("{}/keys/{}/rotate", stage.setup.mount, stage.setup.key);
            assert!(stage.bao().call("POST", &rotate, &json!({})).await.expect("asked").is_ok());
        }
        _ => stage.issue_jwt(3_600),
    }
}

fn config(stage: &Stage) -> String {
    quiet(stage).replace("    rotation:", "    health: { tolerance: 1s }\n    layers: {}\n    rotation:")
}

/// What must not grow.
#[derive(Clone, Copy, Debug)]
struct Figures {
    holds: Holds,
    tasks: u64,
}

async fn figures(stage: &Stage, service: &Service) -> Figures {
    // First, so that the question for the tasks is not in it.
    let holds = Holds::of(u32::try_from(service.main.as_raw_pid()).expect("a number"));
    let tasks = stage.metric(TASKS).await;
    // A series that is not there reads as 0, and would never grow.
    assert!(tasks > 0, "/metrics has no {TASKS}");
    Figures { holds, tasks }
}

/// What says that something is under way.
const GAUGES: [&str; 5] = [
    "bao_kms_calls_in_flight{pipeline=\"a\",call=\"encrypt\"}",
    "bao_kms_calls_in_flight{pipeline=\"a\",call=\"decrypt\"}",
    "bao_kms_queued{pipeline=\"a\"}",
    "bao_kms_gathering{pipeline=\"a\"}",
    "bao_kms_slots_used{pipeline=\"a\"}",
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_wrong_nothing_leaks_and_every_failure_has_its_fault() {
    let length = Duration::from_secs(setting("BAO_KMS_SOAK_SECONDS", 12));
    let between = if length < Duration::from_secs(600) { BETWEEN } else { BETWEEN_LONG };
    let seed = setting("BAO_KMS_SOAK_SEED", u64::from(std::process::id()) + 1);
    let stage = Stage::set().await;
    let mut service = Service::start(&stage, &config(&stage));
    let client = stage.client().await.with_timeout(Duration::from_secs(5));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let beside = Beside::start(&stage.socket()).await;
    let load = load(&stage.socket(), CALLERS).await;

    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut numbers, mut faults, began) = (Numbers(seed), Vec::new(), Instant::now());
    let (mut deeds, mut first, mut middle) = (0, None, None);
    while began.elapsed() < length {
        let start = Instant::now();
        let name = fault(&stage, &mut numbers).await;
        faults.push((start, Instant::now(), name));
        // Nothing that is done from here on has the fault for an excuse.
        tokio::time::sleep(AFTERMATH).await;
        for _ in 0..2 {
            deed(deeds, &stage, &mut service).await;
            deeds += 1;
            tokio::time::sleep((between - AFTERMATH) / 2).await;
        }
        let now = figures(&stage, &service).await;
        first = first.or(Some(now));
        if middle.is_none() && began.elapsed() > length / 2 {
            middle = Some(now);
        }
    }
    let mut account = load.end().await;
    let bursts = beside.end().await;
    account.failures.extend(bursts.failures);
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let mut unexplained = Vec::new();
    for one in &account.failures {
        let class = class(&one.text);
        let explained = faults.iter().any(|(start, end, name)| {
            let meets = one.from <= *end + AFTERMATH && one.to >= *start;
            meets && may_end_with(name).iter().any(|may| Some(*may) == class.as_deref())
        });
        if !explained {
            unexplained.push(&one.text);
        }
        *ends.entry(class.unwrap_or_else(|| "no answer of the program".to_owned())).or_default() += 1;
    }
    let names: Vec<_> = faults.iter().map(|(_, _, name)| *name).collect();
    // Before anything is judged, so that a run that fails is on record too.
    eprintln!(
        "seed {seed}: {} faults, {deeds} deeds, {} calls answered in {} rounds, {} bursts, {} rounds failed: \
         {ends:?}; slowest {:?}",
        faults.len(),
        account.done * 2,
        account.done,
        bursts.done,
        account.failures.len(),
        account.slowest.max(bursts.slowest)
    );
    assert!(unexplained.is_empty(), "seed {seed}, {names:?}: {unexplained:?}");
    status_until(&client, "ok", |status| status.healthz == "ok").await;

    // Once more everything works at the first try, and nothing has grown since the middle.
    for at in 0..CALLERS {
        client.encrypt(vec![at as u8; 32], "u").await.expect("Encrypt");
    }
    let (first, middle) = (first.expect("a first round"), middle.expect("a middle"));
    eventually("what the load held is given back", PATIENCE, || async {
        for gauge in GAUGES {
            match stage.metric(gauge).await {
                0 => {}
                busy => return Err(format!("seed {seed}: {gauge} {busy}")),
            }
        }
        let end = figures(&stage, &service).await;
        let (now, then) = (end.holds, middle.holds);
        let flat = now.kib <= then.kib + GROWTH
            && now.threads <= then.threads + THREADS
            && now.descriptors <= then.descriptors + CALLERS
            && end.tasks <= middle.tasks + SWING;
        if flat { Ok(()) } else { Err(format!("seed {seed}: {end:?}, in the middle {middle:?}")) }
    })
    .await;
    let last = figures(&stage, &service).await;
    eprintln!("seed {seed}: first {first:?}, middle {middle:?}, last {last:?}");
    let log = std::fs::read_to_string(stage.path("log")).expect("a log");
    assert!(!log.contains("\"event\":\"panic\""), "{log}");
    assert!(deeds < 2 || log.contains("\"reloaded\""), "{log}");
    assert!(account.done > 100, "{} rounds are no load", account.done);
}
