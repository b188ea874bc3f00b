//! Answers that are not in OpenBao's words: what stands before an address is that address's trouble, and no call's.

use super::*;

#[tokio::test]
async fn what_stands_in_front_of_a_node_and_refuses_sends_calls_elsewhere() {
    for status in [401, 403, 404] {
        let table: &'static [_] =
            Box::leak(Box::new([("https://a:8200", status, None), ("https://b:8200", 200, None)]));
        let (endpoint, asked) = endpoint(table);
        let first = endpoint.clone().run(call()).await.map(|reply| reply.status);
        let second = endpoint.run(call()).await.map(|reply| reply.status);
        assert_eq!((first.expect("a reply"), second.expect("a reply")), (status, 200));
        let asked = asked.lock().expect("log").clone();
        assert_eq!(asked.iter().filter(|origin| origin.contains("a:8200")).count(), 1, "{asked:?}");
    }
}

/// A page with a good status is no answer either, and does not use up what others may need.
#[tokio::test]
async fn a_page_in_the_place_of_an_answer_opens_the_breaker() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = asked.clone();
    let pipe = tower::service_fn(move |exchange: Exchange| {
        log.lock().expect("log").push(exchange.origin.to_string());
        let first = exchange.endpoint == Some(0) && exchange.call.purpose != Purpose::Health;
        let body = if first { "<html>" } else { "{}" };
        std::future::ready(Ok(BaoReply { body: body.into(), ..answered(&exchange) }))
    });
    let origins = vec![Arc::from("https://a:8200"), Arc::from("https://b:8200")];
    let endpoint = Endpoint::new(origins, Vec::new(), pipe, PipelineMetrics::new());
    for _ in 0..200 {
        let call = call();
        let progress = call.progress.clone();
        let reply = endpoint.clone().run(call.clone()).await.expect("a reply");
        if reply.body.starts_with(b"<") {
            assert!(progress.goes_elsewhere(), "the repeat takes nothing from the budget");
            assert_eq!(&*endpoint.clone().run(call).await.expect("a reply").body, b"{}");
        }
    }
    let met = asked.lock().expect("log").iter().filter(|origin| origin.contains("a:8200")).count();
    // Until the breaker opens, and then a probe now and then.
    assert!(met < 10, "{met}");
    // What a proxy hides of the mount says nothing of an address.
    let call = BaoCall { purpose: Purpose::KeysConfig, ..call() };
    let progress = call.progress.clone();
    endpoint.note(
        1,
        Purpose::KeysConfig,
        &Ok(BaoReply { body: "<html>".into(), ..stranger() }),
        &progress,
        Instant::now(),
    );
    assert!(!progress.avoids(1));
}

fn stranger() -> BaoReply {
    BaoReply { status: 403, body: "".into(), date: None, retry_after: None, location: None, endpoint: Some(1) }
}
