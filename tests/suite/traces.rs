//! Traces, proved against a collector: a span for each KMS call in the caller's trace, a child for each attempt, the
//! context handed on to OpenBao; and a collector that is away slows nobody.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::front::v2::EncryptRequest;
use bao_kms_provider::front::v2::key_management_service_client::KeyManagementServiceClient;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::{TcpListener, UnixStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::support::{PATIENCE, Stage, status_until};

/// A collector that keeps every span.
#[derive(Clone, Default)]
pub struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|one| one.scope_spans);
        self.0.lock().expect("spans").extend(scopes.flat_map(|scope| scope.spans));
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    pub async fn listen(&self) -> String {
        format!("http://127.0.0.1:{}", self.serve(Server::builder()).await)
    }

    /// Serves with these settings; its port.
    pub(super) async fn serve(&self, mut server: Server) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = server.add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        port
    }

    /// How many spans have come.
    pub(super) fn count(&self) -> usize {
        self.0.lock().expect("spans").len()
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        self.0.lock().expect("spans").clone()
    }

    /// Spans of this trace, when there are at least this many.
    async fn of(&self, trace: &str, count: usize) -> Vec<Span> {
        let began = Instant::now();
        loop {
            let all = self.0.lock().expect("spans").clone();
            let found: Vec<Span> = all.iter().filter(|span| hex(&span.trace_id) == trace).cloned().collect();
            if found.len() >= count {
                return found;
            }
            let names: Vec<_> = all.iter().map(|span| (hex(&span.trace_id), span.name.clone())).collect();
            assert!(began.elapsed() < PATIENCE, "never {count} spans of {trace}: {names:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The stage's configuration with this collector.
pub fn config(stage: &Stage, collector: &str) -> String {
    stage.config("").replace(
        "telemetry: { logs: { level: trace } }",
        &format!("telemetry: {{ logs: {{ level: trace }}, traces: {{ otlp: {{ endpoint: \"{collector}\", timeout: 1s }} }} }}"),
    )
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// Encrypt as an API server with tracing sends it.
async fn traced_encrypt(stage: &Stage) {
    let path = stage.socket();
    let channel = tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .expect("a connection");
    let mut request = tonic::Request::new(EncryptRequest { plaintext: vec![7; 32], uid: "u-traced".into() });
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().expect("a header"));
    KeyManagementServiceClient::new(channel).encrypt(request).await.expect("Encrypt");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_a_span_in_its_callers_trace_and_each_attempt_a_child() {
    let (stage, collector) = (Stage::set().await, Collector::default());
    let program = stage.serve(&config(&stage, &collector.listen().await));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let mut events = stage.server.calls().events();
    stage.server.faults().add_times("transit/encrypt", Fault::Reply { status: 503, body: "{}".into() }, 1);
    traced_encrypt(&stage).await;

    let spans = collector.of(TRACE, 3).await;
    let call = spans.iter().find(|span| span.name == "kms.encrypt").expect("the call's span");
    assert_eq!(hex(&call.parent_span_id), CALLER);
    let attempts: Vec<_> = spans.iter().filter(|span| span.name == "openbao.attempt").collect();
    assert_eq!(attempts.len(), 2, "one was answered with 503");
    assert!(attempts.iter().all(|attempt| attempt.parent_span_id == call.span_id));

    let mut handed_on = Vec::new();
    while let Ok(event) = events.try_recv() {
        if event.operation == "transit/encrypt" && event.traceparent.contains(TRACE) {
            handed_on.push(event.traceparent);
        }
    }
    let expected: Vec<_> = attempts.iter().map(|span| format!("00-{TRACE}-{}-01", hex(&span.span_id))).collect();
    assert_eq!(handed_on.len(), 2);
    assert!(handed_on.iter().all(|sent| expected.contains(sent)), "{handed_on:?} {expected:?}");

    // A decrypt flies in a task of its own, and still belongs to its call.
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await.expect("Decrypt");
    let began = Instant::now();
    loop {
        let all = collector.0.lock().expect("spans").clone();
        if let Some(call) = all.iter().find(|span| span.name == "kms.decrypt") {
            let child = |span: &&Span| span.name == "openbao.attempt" && span.parent_span_id == call.span_id;
            assert_eq!(all.iter().filter(child).count(), 1);
            break;
        }
        assert!(began.elapsed() < PATIENCE, "no span of the decrypt");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(program.stop().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_context_goes_on_untouched_when_nothing_is_exported() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let mut events = stage.server.calls().events();
    traced_encrypt(&stage).await;
    let sent = format!("00-{TRACE}-{CALLER}-01");
    let began = Instant::now();
    loop {
        match events.try_recv() {
            Ok(event) if event.traceparent == sent => break,
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        assert!(began.elapsed() < PATIENCE, "never handed on");
    }
}

/// Calls make no span of their own: their exchanges still belong to the caller's trace, and OpenBao is told so.
#[tokio::test(flavor = "multi_thread")]
async fn without_spans_of_calls_the_callers_trace_is_not_broken() {
    let (stage, collector) = (Stage::set().await, Collector::default());
    let otlp = config(&stage, &collector.listen().await);
    let without = otlp.replace("telemetry:", "    layers: { trace: { enabled: false } }\ntelemetry:");
    let _program = stage.serve(&without);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let mut events = stage.server.calls().events();
    traced_encrypt(&stage).await;
    let spans = collector.of(TRACE, 1).await;
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert_eq!((spans[0].name.as_str(), hex(&spans[0].parent_span_id).as_str()), ("openbao.attempt", CALLER));
    let sent = format!("00-{TRACE}-{}-01", hex(&spans[0].span_id));
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        if event.operation == "transit/encrypt" {
            told.push(event.traceparent);
        }
    }
    assert!(told.contains(&sent), "{told:?} {sent}");
}

/// A collector that takes connections and never answers must not hold up a call; nor must one that is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_slows_no_call_and_is_told_once() {
    let stage = Stage::set().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let program = stage.serve(&config(&stage, &format!("http://{address}")));
    let client = stage.client().await.with_timeout(Duration::from_secs(2));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    // More spans than the queue holds: what does not fit is dropped, and no call waits for room.
    let mut callers = tokio::task::JoinSet::new();
    for at in 0..4_000_u32 {
        let client = client.clone();
        callers.spawn(async move { client.encrypt(vec![7; 32], &format!("u{at}")).await.map(|_| ()) });
        if at % 64 == 63 {
            while let Some(answer) = callers.join_next().await {
                answer.expect("a caller").expect("no call waits for the collector");
            }
        }
    }
    program.logged("exporter_trouble").await;
    let (code, log) = program.stop();
    assert_eq!(code, Some(0));
    assert!(
        log.matches("traces cannot be delivered").count() <= 2,
        "once a minute at most, and once at the end: {log}"
    );
}
