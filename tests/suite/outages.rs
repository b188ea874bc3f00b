//! OpenBao away under load, and back: callers wait inside their deadlines and go on one behind the other.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bao_kms_provider::dev::client::Endpoint;
use bao_kms_provider::dev::provision::{Setup, provision};
use bao_kms_provider::dev::server::Fault;
use rustix::net;
use tokio::task::JoinSet;

use super::load::Load;
use super::support::{Stage, code, status_until};

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
    load.end().await.assert_clean(16, "a deadline of 5 s spans an outage of 2.4 s");
}

/// An answer that comes after every call has ended is no answer, whatever the program's own patience.
#[tokio::test(flavor = "multi_thread")]
async fn an_openbao_that_is_slower_than_any_call_waits_shows_in_status() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config("    health: { tolerance: 1s, deepProbeInterval: 1s }"));
    let client = stage.client().await.with_timeout(Duration::from_secs(3));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.server.faults().add("transit", Fault::Delay(Duration::from_secs(4)));
    status_until(&client, "timeout", |status| status.healthz == "timeout" && status.key_id.is_empty()).await;
    let late = client.encrypt(vec![7; 32], "u").await.err().expect("later than it waits");
    assert_eq!(code(&late), tonic::Code::DeadlineExceeded, "{late}");
    stage.server.faults().clear();
    status_until(&client, "ok", |status| status.healthz == "ok").await;
}

/// Between two calls of those who do not wait for one another.
const APART: Duration = Duration::from_millis(10);
/// How many of them there are, and those among them that come while OpenBao is sealed.
const ARRIVALS: usize = 600;
const SEALED: std::ops::Range<usize> = 200..440;
/// In which the rate is measured.
const WINDOW: Duration = Duration::from_millis(200);
/// What the rate may be above twice the steady one: the window is short.
const UNSTEADY: usize = 2;

/// As when an API server fills its caches: whatever has piled up goes in few requests.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_come_all_the_same_while_openbao_is_away_meet_it_at_no_higher_rate_than_before() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await.with_timeout(Duration::from_secs(5));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let mut seeds = Vec::new();
    for at in 0..ARRIVALS {
        let seed = at.to_be_bytes().repeat(4);
        let sealed = client.encrypt(seed.clone(), "u").await.expect("Encrypt");
        seeds.push((seed, sealed));
    }
    let mut events = stage.server.calls().events();
    let asked = tokio::spawn(async move {
        let mut asked = Vec::new();
        while let Ok(event) = events.recv().await {
            if event.operation == "transit/decrypt" {
                asked.push(Instant::now());
            }
        }
        asked
    });

    let (mut callers, began) = (JoinSet::new(), Instant::now());
    let mut back = began;
    for (at, (seed, sealed)) in seeds.into_iter().enumerate() {
        if at == SEALED.start {
            stage.server.state().seal();
        }
        if at == SEALED.end {
            stage.server.state().unseal();
            back = Instant::now();
        }
        let client = client.clone();
        callers.spawn(async move {
            let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await;
            assert_eq!(opened.expect("a deadline of 5 s spans an outage of 2.4 s"), seed);
        });
        tokio::time::sleep_until((began + APART * u32::try_from(at + 1).expect("few")).into()).await;
    }
    callers.join_all().await;
    drop(stage);
    let asked = asked.await.expect("all of them");
    let within = |from: Instant, span: Duration| asked.iter().filter(|at| (from..from + span).contains(*at)).count();
    let steady = within(began, WINDOW * 10) / 10;
    let busiest = asked.iter().filter(|at| **at >= back).map(|at| within(*at, WINDOW)).max().expect("it was asked");
    eprintln!("{busiest} requests in the busiest {WINDOW:?} after the outage, {steady} in a steady one");
    assert!(steady > 5, "{steady} requests in {WINDOW:?} are no rate");
    assert!(busiest <= 2 * steady + UNSTEADY, "{busiest} requests in {WINDOW:?}, {steady} before");
}

/// Keeps the port of nobody from becoming somebody else's; who connects to it is refused.
fn hold(port: u16) -> OwnedFd {
    let socket = net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).expect("a socket");
    net::sockopt::set_socket_reuseaddr(&socket, true).expect("an option");
    net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).expect("the port is free");
    socket
}

/// So long that the token has ended and logins are half a minute apart: OpenBao's return is noticed no later for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_absence_that_outlasts_the_token_and_the_back_off_is_over_within_two_seconds() {
    const AWAY: Duration = Duration::from_secs(75);
    const BACK: Duration = Duration::from_secs(2);
    let stage = Stage::set().await;
    let endpoint = Endpoint { url: stage.server.url(), ca_pem: stage.server.ca_pem() };
    let setup = Setup { token_ttl: "10s".into(), ..stage.setup.clone() };
    provision(&endpoint, &stage.server.root_token(), &setup).await.expect("set up");
    let node = stage.node(0).await;
    let port = node.port();
    // As a file without `rotation` and `health` has it, but for the tolerance: three minutes would hide what is looked for.
    let own = "    rotation: { activationDelay: 1s, metadataInterval: 500ms }\n";
    let config = stage.config_of(&[node.url()], "    health: { tolerance: 5s }").replace(own, "");
    let _program = stage.serve(&config);
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    super::nodes::kill(node).await;
    let held = hold(port);
    tokio::time::sleep(AWAY).await;
    let status = client.status().await.expect("Status");
    assert_eq!((status.healthz.as_str(), status.key_id.as_str()), ("unreachable", ""));
    drop(held);
    let _node = stage.node(port).await;
    let back = Instant::now();
    let healed = status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert!(back.elapsed() < BACK, "Status was healthy after {:?}", back.elapsed());
    assert_eq!(healed.key_id, first.key_id);
}
