//! Redirects go to listed hosts only, once, and failed addresses move to the end.

use std::sync::Mutex;

use super::*;

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
