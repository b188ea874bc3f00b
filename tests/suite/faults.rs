//! OpenBao away, slow and wrong, under load: through a real socket and real TLS, with the fault injected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::{Fault, Options, Server, State};
use bao_kms_provider::front::client::Client;

use super::support::{Stage, status_until};

/// Callers that write and read back until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: tokio::task::JoinSet<Vec<String>>,
}

impl Load {
    fn start(client: &Client, callers: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut set = tokio::task::JoinSet::new();
        for at in 0..callers {
            let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
            set.spawn(async move {
                let (mut failures, seed) = (Vec::new(), vec![at as u8; 32]);
                while !stop.load(Ordering::Relaxed) {
                    match round(&client, &seed).await {
                        Ok(()) => _ = done.fetch_add(1, Ordering::Relaxed),
                        Err(error) => failures.push(error),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                failures
            });
        }
        Self { stop, done, callers: set }
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends it; what failed.
    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.join_all().await.into_iter().flatten().collect()
    }
}

async fn round(client: &Client, seed: &[u8]) -> Result<(), String> {
    let sealed = client.encrypt(seed.to_vec(), "u").await.map_err(|error| format!("Encrypt: {error}"))?;
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
    let opened = opened.map_err(|error| format!("Decrypt: {error}"))?;
    if opened == seed { Ok(()) } else { Err("another plaintext".to_owned()) }
}

async fn node(state: &Arc<State>, port: u16) -> Server {
    let began = Instant::now();
    loop {
        match Server::start(Options { state: Some(state.clone()), port, ..Options::default() }).await {
            Ok(server) => return server,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(10), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn endpoints(config: &str, first: &str, all: &[String]) -> String {
    let list: Vec<_> = all.iter().map(|url| format!("\"{url}\"")).collect();
    config.replace(&format!("\"{first}\""), &list.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn any_of_three_nodes_may_die_and_no_call_is_lost() {
    let stage = Stage::set().await;
    let state = stage.server.state().clone();
    let mut nodes = vec![node(&state, 0).await, node(&state, 0).await, node(&state, 0).await];
    let urls: Vec<_> = nodes.iter().map(Server::url).collect();
    let _program = stage.serve(&endpoints(&stage.config(""), &stage.server.url(), &urls));
    let client = stage.client().await.with_timeout(Duration::from_secs(5));
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let load = Load::start(&client, 16);
    for at in [0, 1, 2, 0] {
        let dead = nodes.remove(at);
        let port = dead.port();
        // What is on its way breaks off, then nobody listens any more.
        dead.faults().add("", Fault::Reset);
        tokio::time::sleep(Duration::from_millis(150)).await;
        dead.shutdown().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = load.done();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(load.done() > before, "calls go on while node {at} is dead");
        nodes.insert(at, node(&state, port).await);
        assert_eq!(client.status().await.expect("Status").key_id, first.key_id);
    }
    // Fail-back: the first of the file is asked again once it answers.
    let began = Instant::now();
    let before = nodes[0].calls().of("transit/encrypt");
    while nodes[0].calls().of("transit/encrypt") < before + 20 {
        assert!(began.elapsed() < Duration::from_secs(10), "no fail-back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let done = load.done();
    assert_eq!(load.end().await, Vec::<String>::new(), "of {done}");
    assert!(done > 500, "{done} calls are no load");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_holed_node_costs_no_call() {
    let stage = Stage::set().await;
    let other = node(stage.server.state(), 0).await;
    let config = endpoints(&stage.config(""), &stage.server.url(), &[stage.server.url(), other.url()]);
    let program = stage.serve(&config);
    let client = stage.client().await.with_timeout(Duration::from_secs(3));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let load = Load::start(&client, 16);
    stage.server.faults().add("", Fault::Hang);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let metrics = stage.admin("/metrics").await.1;
    assert!(metrics.contains("bao_kms_endpoint_open{pipeline=\"a\",endpoint=\"0\"} 1"), "{metrics}");
    let before = load.done();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(load.done() > before + 50, "once the breaker is open nobody waits for the dead node");
    assert_eq!(load.end().await, Vec::<String>::new());
    drop(program);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openbao_that_comes_back_is_not_met_by_everybody_at_once() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await.with_timeout(Duration::from_secs(5));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let load = Load::start(&client, 16);
    let asked = || stage.server.calls().of("transit/encrypt") + stage.server.calls().of("transit/decrypt");
    stage.server.state().seal();
    let (before, began) = (asked(), Instant::now());
    tokio::time::sleep(Duration::from_millis(2_400)).await;
    let during = asked() - before;
    // The sixteen that were on their way, one trial each pause, and those that a healthy answer just before let in.
    assert!(during <= 60, "{during} calls met a sealed OpenBao in {:?}", began.elapsed());
    stage.server.state().unseal();
    let unsealed = Instant::now();
    let before = load.done();
    while load.done() < before + 16 {
        assert!(unsealed.elapsed() < Duration::from_secs(4), "calls do not go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(load.end().await, Vec::<String>::new(), "a deadline of 5 s spans an outage of 2.4 s");
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
        let mut one = pipeline.replace("name: a", &format!("name: p{at}")).replace("kms.sock", &format!("p{at}.sock"));
        if let Some((what, from, to, _)) = broken.get(at) {
            assert!(one.contains(from.as_str()), "{what}");
            one = one.replace(from.as_str(), to);
        }
        text.push_str(&one);
    }
    let program = stage.serve(&format!("{text}telemetry:{tail}"));
    let connect = |at: usize| {
        let path = stage.path(&format!("p{at}.sock"));
        async move {
            let began = Instant::now();
            loop {
                match Client::connect(&path).await {
                    Ok(client) => return client,
                    Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "p{at}: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let mut loads = Vec::new();
    for at in broken.len()..20 {
        let client = connect(at).await;
        status_until(&client, "ok", |status| status.healthz == "ok").await;
        loads.push(Load::start(&client, 1));
    }
    for (at, (what, _, _, class)) in broken.iter().enumerate().skip(1) {
        let client = connect(at).await;
        let status = status_until(&client, what, |status| status.healthz != "ok" && status.healthz != "starting").await;
        if let Some(class) = class {
            assert_eq!(status.healthz, *class, "{what}");
        }
    }
    program.logged("socket_refused").await;
    assert_eq!(stage.admin("/readyz").await.0, 503, "readiness is that of the whole");
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (at, load) in loads.into_iter().enumerate() {
        let done = load.done();
        assert_eq!(load.end().await, Vec::<String>::new(), "healthy pipeline {at}");
        assert!(done > 10, "{done}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_different_seeds_go_in_few_requests_and_leave_nothing_behind() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await.with_timeout(Duration::from_secs(20));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let mut seeds = Vec::new();
    for at in 0..1_000_u32 {
        let mut seed = vec![0; 32];
        seed[..4].copy_from_slice(&at.to_be_bytes());
        seeds.push((client.encrypt(seed.clone(), "u").await.expect("Encrypt"), seed));
    }
    stage.server.faults().add("transit/decrypt", Fault::Delay(Duration::from_millis(50)));
    let before = stage.server.calls().of("transit/decrypt");
    let mut callers = tokio::task::JoinSet::new();
    for (sealed, seed) in seeds.clone() {
        let client = client.clone();
        callers.spawn(async move {
            let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await;
            assert_eq!(opened.expect("none is refused"), seed, "each item has its own answer");
        });
    }
    callers.join_all().await;
    let asked = stage.server.calls().of("transit/decrypt") - before;
    assert!(asked <= 48, "{asked} requests for 1,000 seeds");

    // One that was changed fails alone, in the middle of a batch.
    let mut callers = tokio::task::JoinSet::new();
    for (at, (mut sealed, seed)) in seeds.into_iter().take(64).enumerate() {
        let client = client.clone();
        callers.spawn(async move {
            let mut text = sealed.ciphertext.to_vec();
            if at == 40 {
                text[30] = if text[30] == b'A' { b'B' } else { b'A' };
            }
            let annotations = std::mem::take(&mut sealed.annotations);
            let opened = client.decrypt(text, "u", &sealed.key_id, annotations).await;
            match at {
                40 => assert!(opened.expect_err("changed").to_string().contains("ciphertext_invalid")),
                _ => assert_eq!(opened.expect("untouched"), seed),
            }
        });
    }
    callers.join_all().await;

    // Callers that hang up while their batches are on their way.
    stage.server.faults().clear();
    let mut sealed = Vec::new();
    for at in 0..32 {
        sealed.push(client.encrypt(vec![at; 32], "u").await.expect("Encrypt"));
    }
    stage.server.faults().add("transit/decrypt", Fault::Hang);
    let mut callers = tokio::task::JoinSet::new();
    for one in sealed {
        let client = client.clone();
        callers.spawn(async move {
            let opened = client.decrypt(one.ciphertext.to_vec(), "u", &one.key_id, one.annotations).await;
            panic!("answered: {}", opened.is_ok());
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    callers.abort_all();
    drop(callers);
    let began = Instant::now();
    loop {
        let metrics = stage.admin("/metrics").await.1;
        let quiet = [
            "bao_kms_calls_in_flight{pipeline=\"a\",call=\"decrypt\"} 0",
            "bao_kms_gathering{pipeline=\"a\"} 0",
            "bao_kms_slots_used{pipeline=\"a\"} 0",
        ];
        if quiet.iter().all(|line| metrics.contains(line)) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "something is left behind:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minimum_raised_inside_the_activation_delay_moves_encrypt_at_once() {
    let stage = Stage::set().await;
    // So long that neither the delay nor a routine look at the key can be what moves it.
    let rotation = "rotation: { activationDelay: 1h, metadataInterval: 10m }";
    let config = stage.config("").replace("rotation: { activationDelay: 1s, metadataInterval: 500ms }", rotation);
    assert!(config.contains(rotation));
    let _program = stage.serve(&config);
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let (bao, key) = (stage.bao(), format!("{}/keys/{}", stage.setup.mount, stage.setup.key));
    bao.call("POST", &format!("{key}/rotate"), &serde_json::json!({})).await.expect("rotated");
    bao.call("POST", &format!("{key}/config"), &serde_json::json!({ "min_encryption_version": 2 }))
        .await
        .expect("raised");
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt goes on");
    assert!(sealed.ciphertext.starts_with(b"vault:v2:"));
    assert_ne!(sealed.key_id, first.key_id);
    let status = client.status().await.expect("Status");
    assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &sealed.key_id), "the next Status announces it");
}
