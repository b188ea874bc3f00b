//! Redirects go to listed hosts only, once, and failed addresses move to the end.

use std::sync::Mutex;

use super::*;

#[path = "endpoint/stranger_tests.rs"]
mod strangers;

/// Answers each exchange from a table of `origin -> (status, location)` and keeps what it was asked.
fn endpoint(table: &'static [(&'static str, u16, Option<&'static str>)]) -> (Endpoint, Arc<Mutex<Vec<String>>>) {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = asked.clone();
    let pipe = tower::service_fn(move |exchange: Exchange| {
        log.lock().expect("log").push(exchange.origin.to_string());
        let row = table.iter().find(|(origin, ..)| *origin == &*exchange.origin);
        std::future::ready(match row {
            Some((_, status, location)) => Ok(BaoReply {
                status: *status,
                body: "{}".into(),
                date: None,
                retry_after: None,
                location: location.map(str::to_owned),
                endpoint: exchange.endpoint,
            }),
            None => Err(Error::new(Class::Unreachable, "refused")),
        })
    });
    let origins = vec![Arc::from("https://a:8200"), Arc::from("https://b:8200")];
    (Endpoint::new(origins, vec!["c:8200".to_owned()], pipe, PipelineMetrics::new()), asked)
}

fn answered(exchange: &Exchange) -> BaoReply {
    BaoReply {
        status: 200,
        body: "{}".into(),
        date: None,
        retry_after: None,
        location: None,
        endpoint: exchange.endpoint,
    }
}

fn call() -> BaoCall {
    BaoCall::own(Purpose::Decrypt, Method::Post, "transit/decrypt/k", Duration::from_secs(1))
}

async fn run(table: &'static [(&'static str, u16, Option<&'static str>)]) -> (Result<u16, Class>, Vec<String>) {
    let (endpoint, asked) = endpoint(table);
    let answer = endpoint.run(call()).await.map(|reply| reply.status).map_err(|error| error.class());
    let asked = asked.lock().expect("log").clone();
    (answer, asked)
}

#[tokio::test]
async fn a_listed_target_is_followed_once() {
    let (answer, asked) =
        run(&[("https://a:8200", 307, Some("https://B:8200/v1/x")), ("https://b:8200", 200, None)]).await;
    assert_eq!((answer, asked), (Ok(200), vec!["https://a:8200".to_owned(), "https://b:8200".to_owned()]));
    let (answer, _) = run(&[("https://a:8200", 307, Some("https://c:8200/v1/x")), ("https://c:8200", 200, None)]).await;
    assert_eq!(answer, Ok(200));
    let (answer, asked) =
        run(&[("https://a:8200", 307, Some("https://b:8200/")), ("https://b:8200", 307, Some("https://a:8200/"))])
            .await;
    assert_eq!((answer, asked.len()), (Err(Class::NoLeader), 2));
}

#[tokio::test]
async fn anything_else_is_refused_and_not_asked() {
    for location in [
        None,
        Some("http://b:8200/"),
        Some("https://evil:8200/"),
        Some("https://b:8201/"),
        Some("https://b:8200@evil/"),
        Some("/v1/x"),
    ] {
        let table: &'static [_] = Box::leak(Box::new([("https://a:8200", 307, location)]));
        let (answer, asked) = run(table).await;
        assert_eq!((answer, asked.len()), (Err(Class::RedirectRefused), 1), "{location:?}");
    }
}

#[tokio::test]
async fn a_dead_leader_means_that_there_is_none_yet() {
    let (answer, _) = run(&[("https://a:8200", 307, Some("https://b:8200/"))]).await;
    assert_eq!(answer, Err(Class::NoLeader));
}

#[tokio::test]
async fn a_repeat_meets_another_address() {
    let (endpoint, asked) = endpoint(&[("https://b:8200", 200, None)]);
    assert!(endpoint.clone().run(call()).await.is_err());
    assert!(endpoint.clone().run(call()).await.is_ok());
    assert!(endpoint.run(call()).await.is_ok());
    assert_eq!(*asked.lock().expect("log"), ["https://a:8200", "https://b:8200", "https://b:8200"]);
}

/// A node that refuses everything until this moment and answers from then on, and counts both.
fn healing(after: Duration) -> (Endpoint, Arc<Mutex<(usize, usize)>>) {
    let (asked, begun) = (Arc::new(Mutex::new((0, 0))), Instant::now());
    let log = asked.clone();
    let pipe = tower::service_fn(move |exchange: Exchange| {
        let well = begun.elapsed() >= after;
        let mut log = log.lock().expect("log");
        *(if well { &mut log.1 } else { &mut log.0 }) += 1;
        drop(log);
        async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if well { Ok(answered(&exchange)) } else { Err(Error::new(Class::NoLeader, "no")) }
        }
    });
    let endpoint = Endpoint::new(vec![Arc::from("https://a:8200")], Vec::new(), pipe, PipelineMetrics::new());
    (endpoint, asked)
}

#[tokio::test(start_paused = true)]
async fn while_nobody_answers_callers_wait_behind_one() {
    let (endpoint, asked) = healing(Duration::from_millis(2_400));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let endpoint = endpoint.clone();
            tokio::spawn(async move {
                let call = BaoCall { deadline: Instant::now() + Duration::from_secs(5), ..call() };
                loop {
                    match endpoint.clone().run(call.clone()).await {
                        Ok(_) => return Ok(()),
                        Err(error) if Instant::now() >= call.deadline => return Err(error),
                        Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("a caller").expect("none is lost");
    }
    let (refused, answered) = *asked.lock().expect("log");
    // Each caller once before the breaker opens, then one at a time: at most one in half of the longest pause.
    assert!(refused <= 16 + 20, "{refused} requests to nobody");
    assert_eq!(answered, 16, "each caller asks the new leader once");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_wait_for_the_next_trial_learns_why() {
    let (endpoint, _) = healing(Duration::from_secs(60));
    assert!(endpoint.clone().run(call()).await.is_err());
    let call = BaoCall { deadline: Instant::now() + Duration::from_millis(10), ..call() };
    let error = endpoint.run(call).await.err().expect("too late");
    assert_eq!(error.class(), Class::NoLeader);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_never_answers_leaves_time_for_another() {
    let pipe = tower::service_fn(|exchange: Exchange| async move {
        if exchange.endpoint == Some(0) {
            std::future::pending::<()>().await;
        }
        Ok(answered(&exchange))
    });
    let origins = vec![Arc::from("https://a:8200"), Arc::from("https://b:8200")];
    let endpoint = Endpoint::new(origins, Vec::new(), pipe, PipelineMetrics::new());
    let due = Instant::now() + Duration::from_secs(2);
    let call = BaoCall { deadline: due, ..call() };
    let error = endpoint.clone().run(call.clone()).await.err().expect("black-holed");
    assert_eq!((error.class(), due - Instant::now()), (Class::Timeout, Duration::from_secs(1)));
    assert_eq!(endpoint.run(call).await.expect("the other").endpoint, Some(1));
}

#[tokio::test(start_paused = true)]
async fn callers_in_a_hurry_open_no_breaker() {
    let pipe = tower::service_fn(|exchange: Exchange| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(answered(&exchange))
    });
    let endpoint = Endpoint::new(vec![Arc::from("https://a:8200")], Vec::new(), pipe, PipelineMetrics::new());
    for _ in 0..5 {
        let hurried = BaoCall { deadline: Instant::now() + Duration::from_millis(10), ..call() };
        assert_eq!(endpoint.clone().run(hurried).await.err().expect("too late").class(), Class::Timeout);
    }
    let began = Instant::now();
    assert!(endpoint.run(call()).await.is_ok());
    assert_eq!(began.elapsed(), Duration::from_millis(50), "at once");
}

#[tokio::test(start_paused = true)]
async fn a_call_of_a_second_meets_the_other_address_too() {
    let pipe = tower::service_fn(|exchange: Exchange| async move {
        if exchange.endpoint == Some(0) {
            std::future::pending::<()>().await;
        }
        Ok(answered(&exchange))
    });
    let origins = vec![Arc::from("https://a:8200"), Arc::from("https://b:8200")];
    let endpoint = Endpoint::new(origins, Vec::new(), pipe, PipelineMetrics::new());
    let call = BaoCall { deadline: Instant::now() + Duration::from_millis(800), ..call() };
    assert_eq!(endpoint.clone().run(call.clone()).await.err().expect("black-holed").class(), Class::Timeout);
    assert_eq!(endpoint.run(call).await.expect("the other").endpoint, Some(1));
}

#[tokio::test]
async fn what_transit_finds_wrong_with_an_answer_leads_elsewhere() {
    let (endpoint, asked) = endpoint(&[("https://a:8200", 400, None), ("https://b:8200", 200, None)]);
    let call = call();
    assert_eq!(endpoint.clone().run(call.clone()).await.expect("a stale node").status, 400);
    call.progress.avoid(0);
    assert_eq!(endpoint.run(call).await.expect("another").status, 200);
    assert_eq!(*asked.lock().expect("log"), ["https://a:8200", "https://b:8200"]);
}

#[tokio::test]
async fn a_redirect_to_an_unlisted_host_leads_elsewhere_as_well() {
    let (endpoint, asked) =
        endpoint(&[("https://a:8200", 307, Some("https://evil:8200/")), ("https://b:8200", 200, None)]);
    let call = call();
    assert!(endpoint.clone().run(call.clone()).await.is_err());
    assert!(endpoint.run(call).await.is_ok());
    assert_eq!(*asked.lock().expect("log"), ["https://a:8200", "https://b:8200"]);
}

#[tokio::test]
async fn a_file_of_ours_that_cannot_be_read_says_nothing_about_openbao() {
    let pipe = tower::service_fn(|_: Exchange| std::future::ready(Err(Class::TrustUnavailable.into())));
    let endpoint = Endpoint::new(vec![Arc::from("https://a:8200")], Vec::new(), pipe, PipelineMetrics::new());
    for _ in 0..5 {
        assert_eq!(endpoint.clone().run(call()).await.err().expect("no CA").class(), Class::TrustUnavailable);
    }
    assert!(matches!(endpoint.shared.breakers.pick(Instant::now(), |_| false), Pick::Ask { trial: None, .. }));
}

#[test]
fn a_seal_is_told_from_a_load_balancer_and_from_what_stands_in_front() {
    let reply = |status, body: &'static str| BaoReply {
        status,
        body: body.into(),
        date: None,
        retry_after: None,
        location: None,
        endpoint: None,
    };
    let cases = [
        (503, "{\"errors\":[\"Vault is sealed\"]}", Class::Sealed),
        (503, "{\"errors\":[\"node is not active\"]}", Class::NoLeader),
        (503, "<html>", Class::NoLeader),
        (500, "{\"errors\":[\"local node not active but active cluster node not found\"]}", Class::NoLeader),
        (500, "", Class::ServerError),
    ];
    for (status, body, class) in cases {
        assert_eq!(unwell(&reply(status, body)), Some(class), "{status} {body}");
    }
    for status in [200, 400, 403, 404, 429, 472] {
        assert!(health(&reply(status, "")).is_ok(), "{status}");
    }
    let class = |reply: BaoReply| health(&reply).expect_err("unwell").class();
    assert_eq!(class(reply(503, "{\"initialized\":true,\"sealed\":true}")), Class::Sealed);
    assert_eq!(class(reply(503, "<html>")), Class::NoLeader);
}

#[tokio::test(start_paused = true)]
async fn the_first_node_that_is_well_is_enough() {
    let pipe = tower::service_fn(|exchange: Exchange| async move {
        if exchange.endpoint == Some(0) {
            std::future::pending::<()>().await;
        }
        Ok(answered(&exchange))
    });
    let origins = vec![Arc::from("https://a:8200"), Arc::from("https://b:8200")];
    let endpoint = Endpoint::new(origins, Vec::new(), pipe, PipelineMetrics::new());
    let began = Instant::now();
    endpoint.find(Duration::from_millis(500), Duration::from_secs(2)).await.expect("b is well");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn when_none_is_well_an_answer_says_more_than_silence_and_is_not_held_up_by_it() {
    let pipe = tower::service_fn(|exchange: Exchange| async move {
        match exchange.endpoint {
            Some(1) => Ok(BaoReply { status: 503, body: "{\"sealed\":true}".into(), ..answered(&exchange) }),
            Some(0) => std::future::pending().await,
            _ => Err(Error::from(Class::Unreachable)),
        }
    });
    let origins = ["https://a:8200", "https://b:8200", "https://c:8200"].map(Arc::from).to_vec();
    let endpoint = Endpoint::new(origins, Vec::new(), pipe, PipelineMetrics::new());
    let began = Instant::now();
    let error = endpoint.find(Duration::from_millis(500), Duration::from_secs(2)).await.expect_err("none is well");
    assert_eq!((error.class(), began.elapsed()), (Class::Sealed, Duration::from_millis(500)));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_well_and_slow_to_say_so_is_found_by_the_next_look() {
    let pipe = tower::service_fn(|exchange: Exchange| async move {
        tokio::time::sleep(Duration::from_millis(800)).await;
        Ok(answered(&exchange))
    });
    let endpoint = Endpoint::new(vec!["https://a:8200".into()], Vec::new(), pipe, PipelineMetrics::new());
    let find = || endpoint.find(Duration::from_millis(500), Duration::from_secs(2));
    assert_eq!(find().await.expect_err("not yet").class(), Class::Timeout);
    tokio::time::sleep(Duration::from_secs(1)).await;
    find().await.expect("it has said so since");
}

/// Whoever waits a second for everything gives the first address half of it, and the second half of what is left.
#[tokio::test(start_paused = true)]
async fn callers_in_a_hurry_do_not_make_a_slow_openbao_of_one_black_hole() {
    let pipe = tower::service_fn(|exchange: Exchange| async move {
        match exchange.endpoint {
            Some(0) => std::future::pending().await,
            _ => tokio::time::sleep(Duration::from_millis(300)).await,
        }
        Ok(answered(&exchange))
    });
    let origins = ["https://a:8200", "https://b:8200", "https://c:8200"].map(Arc::from).to_vec();
    let endpoint = Endpoint::new(origins, Vec::new(), pipe, PipelineMetrics::new());
    let hurried = BaoCall { deadline: Instant::now() + Duration::from_millis(900), ..call() };
    for _ in 0..2 {
        let error = endpoint.clone().run(hurried.clone()).await.err().expect("too short");
        hurried.progress.met(error.class());
    }
    assert!(!endpoint.shared.breakers.is_crawling(), "the second wait was too short to say so");

    let patient = BaoCall { deadline: Instant::now() + Duration::from_secs(20), ..call() };
    patient.progress.avoid(1);
    patient.progress.met(Class::Timeout);
    endpoint.clone().run(patient).await.err().expect("the black hole");
    assert!(endpoint.shared.breakers.is_crawling(), "two have let it wait");
    let next = BaoCall { deadline: Instant::now() + Duration::from_secs(5), ..call() };
    next.progress.avoid(0);
    endpoint.clone().run(next).await.expect("another one answers, and fast");
    assert!(!endpoint.shared.breakers.is_crawling());
}

#[tokio::test(start_paused = true)]
async fn breakers_that_were_replaced_move_no_gauge() {
    let metrics = PipelineMetrics::new();
    let shown = |at: usize| {
        let label = crate::telemetry::metrics::EndpointLabel { endpoint: at.to_string() };
        metrics.breakers.get(&label).map(|gauge| gauge.get())
    };
    let old = Breakers::new(2, metrics.clone());
    old.failed(1, Class::Unreachable, Instant::now());
    assert_eq!((shown(0), shown(1)), (Some(0), Some(1)));
    let new = Breakers::new(1, metrics.clone());
    assert_eq!((shown(0), shown(1)), (Some(0), None), "an address that is gone is not shown");
    // Calls may still be in the stack that was replaced.
    old.failed(0, Class::Unreachable, Instant::now());
    assert_eq!(shown(0), Some(0));
    new.failed(0, Class::Unreachable, Instant::now());
    assert_eq!(shown(0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lags_comes_last_for_a_while_and_is_not_taken_for_a_failed_one() {
    let pipe = tower::service_fn(|exchange: Exchange| {
        let stale = r#"{"errors":["invalid ciphertext: version is too new"]}"#;
        let reply = match exchange.endpoint {
            Some(0) => BaoReply { status: 400, body: stale.into(), ..answered(&exchange) },
            _ => answered(&exchange),
        };
        std::future::ready(Ok(reply))
    });
    let origins = vec![Arc::from("https://a:8200"), Arc::from("https://b:8200")];
    let endpoint = Endpoint::new(origins, Vec::new(), pipe, PipelineMetrics::new());
    let asked = async |endpoint: &Endpoint| endpoint.clone().run(call()).await.expect("a reply").endpoint;
    assert_eq!(asked(&endpoint).await, Some(0));
    assert_eq!((asked(&endpoint).await, asked(&endpoint).await), (Some(1), Some(1)), "others come first");
    assert!(matches!(endpoint.shared.breakers.pick(Instant::now(), |at| at == 1), Pick::Ask { at: 0, trial: None }));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(asked(&endpoint).await, Some(0), "it is asked again");
}
