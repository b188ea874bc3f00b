//! Twenty pipelines in one process: the trouble of one, whatever it is, moves none of the others.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::{Fault, Flaw, Line, Server};
use bao_kms_provider::front::client::Client;
use serde_json::{Value, json};

use super::load::{Load, round, sealed_under};
use super::support::{PATIENCE, Stage, status_until, until};

/// A pipeline of [`Stage::config`] under another name, at a socket of its own.
fn named(pipeline: &str, at: usize) -> String {
    pipeline.replace("name: a", &format!("name: p{at}")).replace("kms.sock", &format!("p{at}.sock"))
}

async fn connect(stage: &Stage, at: usize) -> Client {
    let (path, began) = (stage.path(&format!("p{at}.sock")), Instant::now());
    loop {
        match Client::connect(&path).await {
            Ok(client) => return client,
            Err(error) => assert!(began.elapsed() < PATIENCE, "p{at}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Each way of being broken in a pipeline of its own, beside fourteen healthy ones.
#[tokio::test(flavor = "multi_thread")]
async fn healthy_pipelines_are_unmoved_by_the_trouble_of_others() {
    let stage = Stage::set().await;
    let whole = stage.config("    health: { tolerance: 1s }");
    let (head, rest) = whole.split_once("pipelines:\n").expect("pipelines");
    let (pipeline, tail) = rest.split_once("telemetry:").expect("telemetry");
    let (url, jwt, ca) = (stage.server.url(), stage.path("identity.jwt"), stage.path("ca.pem"));
    let nowhere = format!(
        "https://127.0.0.1:{}",
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
    );
    let taken = stage.write("no-socket", "a regular file");
    let broken = [
        ("socket", stage.path("p0.sock").display().to_string(), taken.display().to_string(), None),
        ("jwt", jwt.display().to_string(), "/nowhere/identity.jwt".to_owned(), Some("credential_unavailable")),
        ("role", "role: kms,".to_owned(), "role: nobody,".to_owned(), Some("login_refused")),
        ("ca", ca.display().to_string(), "/nowhere/ca.pem".to_owned(), Some("trust_unavailable")),
        ("key", format!("key: {}", stage.setup.key), "key: another".to_owned(), None),
        ("openbao", url, nowhere, Some("unreachable")),
    ];
    let mut text = format!("{head}pipelines:\n");
    for at in 0..20 {
        let mut one = named(pipeline, at);
        if let Some((what, from, to, _)) = broken.get(at) {
            assert!(one.contains(from.as_str()), "{what}");
            one = one.replace(from.as_str(), to);
        }
        text.push_str(&one);
    }
    let program = stage.serve(&format!("{text}telemetry:{tail}"));
    let (mut loads, mut hammers) = (Vec::new(), Vec::new());
    for at in broken.len()..20 {
        let client = connect(&stage, at).await;
        status_until(&client, "ok", |status| status.healthz == "ok").await;
        loads.push(Load::start(&client, 1));
    }
    for (at, (what, _, _, class)) in broken.iter().enumerate().skip(1) {
        let client = connect(&stage, at).await;
        let status = status_until(&client, what, |status| status.healthz != "ok" && status.healthz != "starting").await;
        if let Some(class) = class {
            assert_eq!(status.healthz, *class, "{what}");
        }
        hammers.push((what, Load::start(&client, HAMMER)));
    }
    program.logged("socket_refused").await;
    assert_eq!(stage.admin("/readyz").await.0, 503, "readiness is that of the whole");
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (at, load) in loads.into_iter().enumerate() {
        load.end().await.assert_clean(10, &format!("healthy pipeline {at}"));
    }
    for (what, hammer) in hammers {
        let hammered = hammer.end().await;
        assert!(hammered.done == 0 && hammered.failures.len() >= HAMMER, "{what}: {hammered:?}");
    }
}

/// What happens to a pipeline while it runs, and what its Status says of it; nothing when it goes on.
const WAYS: [(&str, Option<&str>); 8] = [
    ("its JWT is removed and its token refused", Some("credential_unavailable")),
    ("its token is refused for good", Some("token_rejected")),
    ("its OpenBao hangs", Some("timeout")),
    ("its OpenBao is slow", None),
    ("its OpenBao is sealed", Some("sealed")),
    ("its CA file is another's", Some("tls")),
    ("its key is soft-deleted", Some("key_soft_deleted")),
    ("its socket is removed", None),
];
const ALL: usize = 20;

/// Breaks the pipeline that this way is for; each has a node, a JWT, a CA file and a key of its own.
async fn break_it(way: usize, stage: &Stage, node: &Server) {
    let refused = Fault::Reply { status: 403, body: "{\"errors\":[\"permission denied\"]}\n".into() };
    let sealed = Fault::Reply { status: 503, body: "{\"errors\":[\"Vault is sealed\"]}\n".into() };
    let faults = node.faults();
    match way {
        0 => {
            std::fs::remove_file(stage.path("p0.jwt")).expect("removed");
            faults.add("transit/", refused);
        }
        1 => _ = faults.add("transit/", refused),
        2 => _ = faults.add("", Fault::Hang),
        3 => _ = faults.add("", Fault::Delay(Duration::from_millis(600))),
        4 => _ = faults.add("", sealed),
        5 => {
            let other = node.set_line(Line::Shows(Flaw::OtherAuthority));
            other.expect("a certificate");
        }
        6 => {
            let deleted = stage.bao().call("DELETE", "transit/keys/k6/soft-delete", &Value::Null).await;
            assert!(deleted.expect("asked").is_ok());
        }
        _ => std::fs::remove_file(stage.path("p7.sock")).expect("removed"),
    }
}

async fn repair(way: usize, stage: &Stage, node: &Server) {
    node.faults().clear();
    node.set_line(Line::Open).expect("a certificate");
    if way == 0 {
        std::fs::copy(stage.path("identity.jwt"), stage.path("p0.jwt")).expect("copied");
    }
    if way == 6 {
        let restored = stage.bao().call("POST", "transit/keys/k6/soft-delete-restore", &json!({})).await;
        assert!(restored.expect("asked").is_ok());
    }
}

/// How many callers the pipeline has that breaks: they go on when it does.
const HAMMER: usize = 4;
/// What healthy callers wait: kube-apiserver's time.
const CALLER: Duration = Duration::from_secs(3);
/// For how long neighbours are looked at before the trouble, which is what they are then compared with.
const CALM: Duration = Duration::from_secs(1);
/// How long each trouble lasts at least, so that there are rounds in it to compare.
const TROUBLE: Duration = Duration::from_secs(2);
/// What is no move, whatever came before: a machine with other things to do holds anybody up for as long.
const NO_MOVE: Duration = Duration::from_millis(500);

/// A pipeline that the trouble of another one must not move: when each of its rounds ended, and how long it took.
#[derive(Clone, Default)]
struct Neighbour(Arc<Mutex<Vec<(Instant, Duration)>>>);

// === impl Neighbour ===

impl Neighbour {
    /// One round, which has to be sealed under this key_id.
    async fn round(self, client: Client, seed: Vec<u8>, key_id: String) -> Result<(), String> {
        let from = Instant::now();
        let sealed = sealed_under(&client, &seed).await?;
        self.0.lock().expect("lock").push((Instant::now(), from.elapsed()));
        if sealed == key_id { Ok(()) } else { Err(format!("sealed under {sealed} and not under {key_id}")) }
    }

    /// How long the rounds took that ended before this moment, and those that did later.
    fn rounds(&self, broke: Instant) -> (Vec<Duration>, Vec<Duration>) {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (ended, took) in &*self.0.lock().expect("lock") {
            if *ended < broke { before.push(*took) } else { after.push(*took) }
        }
        (before, after)
    }
}

/// What so many of a hundred rounds did not exceed.
fn percentile(mut rounds: Vec<Duration>, of_hundred: usize) -> Duration {
    assert!(!rounds.is_empty(), "no rounds are no measure");
    rounds.sort_unstable();
    rounds[(rounds.len() - 1) * of_hundred / 100]
}

/// Rounds take about as long as before the trouble: nearly all of them together, and the usual one of each neighbour, since
/// one alone that stands still makes too few to show among those of all.
fn assert_unmoved(neighbours: &[Neighbour], broke: Instant, what: &str) {
    let (mut calm, mut troubled, mut usual) = (Vec::new(), Vec::new(), Vec::new());
    for neighbour in neighbours {
        let (before, after) = neighbour.rounds(broke);
        calm.extend(before);
        troubled.extend_from_slice(&after);
        usual.push(percentile(after, 50));
    }
    let before = percentile(calm, 90);
    let most = NO_MOVE.max(before * 5);
    // A machine that stands still for a moment holds up one round of each: one in twenty of those that there are.
    let during = percentile(troubled, 90);
    assert!(during <= most, "{what}: nine in ten of the neighbours' rounds took {before:?} before and {during:?} then");
    for (at, usual) in usual.iter().enumerate() {
        assert!(*usual <= most, "{what}: neighbour {at} usually took {usual:?}, all before it {before:?} at most");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pipeline_at_a_time_breaks_in_every_way_and_nineteen_are_unmoved() {
    let stage = Stage::set().await;
    let whole = stage.config("    health: { tolerance: 1s }").replace("level: trace", "level: info");
    let (head, rest) = whole.split_once("pipelines:\n").expect("pipelines");
    let (pipeline, tail) = rest.split_once("telemetry:").expect("telemetry");
    let policy = stage.setup.policy_text().replace(&stage.setup.key, "*");
    let written = stage.bao().call("POST", "sys/policies/acl/kms", &json!({ "policy": policy })).await;
    assert!(written.expect("asked").is_ok());
    let (mut text, mut nodes) = (format!("{head}pipelines:\n"), Vec::new());
    for at in 0..ALL {
        let mut one = named(pipeline, at);
        if at < WAYS.len() {
            let made = stage.bao().call("POST", &format!("transit/keys/k{at}"), &json!({})).await;
            assert!(made.expect("asked").is_ok());
            let node = stage.node(0).await;
            std::fs::copy(stage.path("identity.jwt"), stage.path(&format!("p{at}.jwt"))).expect("copied");
            stage.write(&format!("p{at}.pem"), &stage.server.ca_pem());
            one = one
                .replace(&stage.server.url(), &node.url())
                .replace("identity.jwt", &format!("p{at}.jwt"))
                .replace("ca.pem", &format!("p{at}.pem"))
                .replace(&format!("key: {}", stage.setup.key), &format!("key: k{at}"));
            nodes.push(node);
        }
        text.push_str(&one);
    }
    let _program = stage.serve(&format!("{text}telemetry:{tail}"));
    let (mut clients, mut ids) = (Vec::new(), Vec::new());
    for at in 0..ALL {
        let client = connect(&stage, at).await.with_timeout(CALLER);
        ids.push(status_until(&client, "ok", |status| status.healthz == "ok").await.key_id);
        clients.push(client);
    }

    for (way, (what, class)) in WAYS.iter().enumerate() {
        let others: Vec<_> = (0..ALL).filter(|at| *at != way).collect();
        let neighbours: Vec<_> = others.iter().map(|_| Neighbour::default()).collect();
        let load = Load::of(others.len(), Duration::from_millis(100), |caller| {
            let (client, key_id) = (clients[others[caller]].clone(), ids[others[caller]].clone());
            let (neighbour, seed) = (neighbours[caller].clone(), vec![caller as u8; 32]);
            move || neighbour.clone().round(client.clone(), seed.clone(), key_id.clone())
        });
        // From the beginning, so that what is compared differs by the trouble alone.
        let hammer = Load::of(HAMMER, Duration::from_millis(20), |caller| {
            let (client, seed) = (clients[way].clone(), vec![caller as u8; 32]);
            move || {
                let (client, seed) = (client.clone(), seed.clone());
                async move { round(&client, &seed).await }
            }
        });
        until("its callers are served", || hammer.done() >= HAMMER).await;
        tokio::time::sleep(CALM).await;
        let broke = Instant::now();
        break_it(way, &stage, &nodes[way]).await;
        if let Some(class) = class {
            status_until(&clients[way], what, |status| status.healthz == *class).await;
        }
        tokio::time::sleep(TROUBLE.saturating_sub(broke.elapsed())).await;
        if class.is_none() {
            round(&clients[way], &[7; 32]).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        for at in &others {
            let status = clients[*at].status().await.expect("Status");
            assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &ids[*at]), "p{at} while p{way}: {what}");
        }
        load.end().await.assert_clean(others.len(), what);
        assert_unmoved(&neighbours, broke, what);
        let hammered = hammer.end().await;
        let lost = hammered.failures.iter().filter(|failure| failure.to > broke).count();
        assert_eq!(hammered.failures.len(), lost, "{what}: it was well before: {:?}", hammered.failures);
        assert!(class.is_none() == (lost == 0), "{what}: {:?}", hammered.failures);
        repair(way, &stage, &nodes[way]).await;
        status_until(&clients[way], "ok again", |status| status.healthz == "ok").await;
    }
}
