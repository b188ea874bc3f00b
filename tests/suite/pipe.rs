//! The pipe against real TLS: what is believed, what is sent, what is refused, and which class each trouble has.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::error::{Class, Error};
use bao_kms_provider::http::{Pipe, PipeOptions, TlsConfig};
use bao_kms_provider::request::{BaoCall, BaoReply, Credential, Exchange, Method, Purpose, TraceContext};
use tower::Service;

use super::bao::Bao;
use super::stub::{Authority, Stub, ok};

const YEARS: (i32, i32) = (2020, 2120);

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        path
    }

    /// A pipe that believes `ca` alone.
    fn pipe(&self, ca: &str, server_name: Option<&str>) -> Pipe {
        options(Some(self.write("ca.pem", ca)), server_name, "kms/prod")
    }
}

fn options(ca_file: Option<PathBuf>, server_name: Option<&str>, namespace: &str) -> Pipe {
    Pipe::new(PipeOptions {
        tls: TlsConfig { ca_file, server_name: server_name.map(str::to_owned) },
        namespace: namespace.to_owned(),
        client_identity: None,
        max_idle: 4,
    })
}

fn question() -> BaoCall {
    BaoCall::own(Purpose::Metadata, Method::Get, "transit/keys/k", Duration::from_secs(10))
        .with_credential(Credential::Anonymous)
}

async fn ask(pipe: &Pipe, origin: &Arc<str>, call: BaoCall) -> Result<BaoReply, Error> {
    pipe.clone().call(Exchange { origin: origin.clone(), endpoint: Some(0), call }).await
}

async fn refusal(pipe: &Pipe, origin: &Arc<str>) -> Error {
    ask(pipe, origin, question()).await.err().expect("a refusal")
}

#[tokio::test]
async fn the_certificate_must_lead_to_the_ca_file() {
    let (authority, other, files) = (Authority::new(), Authority::new(), Files::new());
    let stub = Stub::start(&authority, "127.0.0.1", YEARS, ok(b"{}")).await;
    let error = refusal(&files.pipe(&other.pem(), None), &stub.origin).await;
    assert_eq!(error.class(), Class::Tls);
    assert!(error.detail().contains("CA"), "{error}");
    assert_eq!(ask(&files.pipe(&authority.pem(), None), &stub.origin, question()).await.ok().unwrap().status, 200);
    assert_eq!(refusal(&options(None, None, ""), &stub.origin).await.class(), Class::Tls, "the system's roots");
}

#[tokio::test]
async fn the_certificate_must_carry_the_host_or_the_configured_name() {
    let (authority, files) = (Authority::new(), Files::new());
    let stub = Stub::start(&authority, "bao.example", YEARS, ok(b"{}")).await;
    for name in [None, Some("other.example"), Some("127.0.0.1")] {
        let error = refusal(&files.pipe(&authority.pem(), name), &stub.origin).await;
        assert_eq!(error.class(), Class::Tls, "{name:?}");
        assert!(error.detail().contains("name"), "{error}");
    }
    let pipe = files.pipe(&authority.pem(), Some("bao.example"));
    assert_eq!(ask(&pipe, &stub.origin, question()).await.ok().unwrap().status, 200);
}

#[tokio::test]
async fn the_configured_name_does_not_weaken_anything_else() {
    let (authority, other, files) = (Authority::new(), Authority::new(), Files::new());
    let stub = Stub::start(&authority, "bao.example", YEARS, ok(b"{}")).await;
    assert_eq!(refusal(&files.pipe(&other.pem(), Some("bao.example")), &stub.origin).await.class(), Class::Tls);
    let old = Stub::start(&authority, "bao.example", (2001, 2002), ok(b"{}")).await;
    let error = refusal(&files.pipe(&authority.pem(), Some("bao.example")), &old.origin).await;
    assert_eq!(error.class(), Class::Tls);
    assert!(error.detail().contains("expired"), "{error}");
    let early = Stub::start(&authority, "bao.example", (2110, 2120), ok(b"{}")).await;
    let error = refusal(&files.pipe(&authority.pem(), Some("bao.example")), &early.origin).await;
    assert!(error.detail().contains("not valid yet"), "{error}");
}

#[tokio::test]
async fn each_request_carries_what_it_should_and_nothing_else() {
    let (authority, files) = (Authority::new(), Files::new());
    let stub = Stub::start(&authority, "127.0.0.1", YEARS, ok(b"{}")).await;
    let pipe = files.pipe(&authority.pem(), None);
    let mut call = question().with_credential(Credential::Token("s.token".to_owned().into()));
    call.trace = Some(TraceContext { parent: "00-aa-bb-01".into(), state: "k=v".into() });
    ask(&pipe, &stub.origin, call).await.ok().unwrap();
    let mut login = question().with_body(b"{\"role\":\"r\"}".to_vec());
    (login.method, login.trace) =
        (Method::Post, Some(TraceContext { parent: "no\nheader".into(), state: String::new() }));
    ask(&pipe, &stub.origin, login).await.ok().unwrap();
    ask(&pipe, &stub.origin, BaoCall { namespaced: false, ..question() }).await.ok().unwrap();
    let heads = stub.heads();
    assert!(heads[0].starts_with("get /v1/transit/keys/k http/1.1\r\n"), "{}", heads[0]);
    for line in ["authorization: bearer s.token", "traceparent: 00-aa-bb-01", "tracestate: k=v"] {
        assert!(heads[0].contains(&format!("\r\n{line}\r\n")), "{line} in {}", heads[0]);
    }
    for head in &heads[..2] {
        assert!(head.contains("\r\nx-vault-namespace: kms/prod\r\n") && head.contains("\r\nx-vault-request: true\r\n"));
    }
    assert!(!heads[1].contains("authorization") && !heads[1].contains("traceparent"), "{}", heads[1]);
    assert!(heads[1].contains("\r\ncontent-type: application/json\r\n"));
    assert!(!heads[2].contains("x-vault-namespace"), "sys/health refuses it");
    assert_eq!(stub.connections.load(Ordering::SeqCst), 1, "kept alive");
}

#[tokio::test]
async fn a_namespace_is_never_left_out() {
    let (authority, files) = (Authority::new(), Files::new());
    let stub = Stub::start(&authority, "127.0.0.1", YEARS, ok(b"{}")).await;
    let ca = files.write("ca.pem", &authority.pem());
    ask(&options(Some(ca.clone()), None, "prod-ü"), &stub.origin, question()).await.ok().unwrap();
    assert!(stub.heads()[0].contains("\r\nx-vault-namespace: prod-ü\r\n"), "{}", stub.heads()[0]);
    let error = refusal(&options(Some(ca), None, "a\nb"), &stub.origin).await;
    assert_eq!((error.class(), stub.heads().len()), (Class::NamespaceMissing, 1));
}

#[tokio::test]
async fn missing_and_bad_files_are_reasons_that_heal() {
    let (authority, files) = (Authority::new(), Files::new());
    let stub = Stub::start(&authority, "127.0.0.1", YEARS, ok(b"{}")).await;
    let path = files.0.path().join("ca.pem");
    let pipe = options(Some(path.clone()), None, "");
    for content in [None, Some(""), Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")] {
        if let Some(content) = content {
            files.write("ca.pem", content);
        }
        let error = refusal(&pipe, &stub.origin).await;
        assert_eq!(error.class(), Class::TrustUnavailable, "{content:?}");
        assert!(error.detail().contains(path.to_str().unwrap()), "{error}");
    }
    files.write("ca.pem", &authority.pem());
    assert_eq!(ask(&pipe, &stub.origin, question()).await.ok().unwrap().status, 200);
}

#[tokio::test]
async fn a_reload_takes_over_what_changed_and_keeps_what_worked() {
    let (old, new, files) = (Authority::new(), Authority::new(), Files::new());
    let (before, after) = (
        Stub::start(&old, "127.0.0.1", YEARS, ok(b"{}")).await,
        Stub::start(&new, "127.0.0.1", YEARS, ok(b"{}")).await,
    );
    let pipe = files.pipe(&old.pem(), None);
    ask(&pipe, &before.origin, question()).await.ok().unwrap();
    pipe.reload().unwrap();
    ask(&pipe, &before.origin, question()).await.ok().unwrap();
    assert_eq!(before.connections.load(Ordering::SeqCst), 1, "nothing changed: the connection stays");
    files.write("ca.pem", "nonsense");
    assert_eq!(pipe.reload().unwrap_err().class(), Class::TrustUnavailable);
    ask(&pipe, &before.origin, question()).await.ok().unwrap();
    files.write("ca.pem", &new.pem());
    pipe.reload().unwrap();
    ask(&pipe, &after.origin, question()).await.ok().unwrap();
    assert_eq!(refusal(&pipe, &before.origin).await.class(), Class::Tls, "no connection outlives its trust");
}

#[tokio::test]
async fn a_replaced_ca_file_is_noticed_when_the_old_one_fails() {
    let (old, new, files) = (Authority::new(), Authority::new(), Files::new());
    let stub = Stub::start(&new, "127.0.0.1", YEARS, ok(b"{}")).await;
    let pipe = files.pipe(&old.pem(), None);
    assert_eq!(refusal(&pipe, &stub.origin).await.class(), Class::Tls);
    files.write("ca.pem", "nonsense");
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let error = refusal(&pipe, &stub.origin).await;
        assert_eq!(error.class(), Class::Tls);
        if error.detail().contains("ca.pem") {
            break;
        }
        assert!(Instant::now() < until, "the file that is no good any more is never told: {error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    files.write("ca.pem", &new.pem());
    while let Err(error) = ask(&pipe, &stub.origin, question()).await {
        assert!(Instant::now() < until, "never noticed: {error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn answers_are_bounded_however_they_come() {
    let (authority, files) = (Authority::new(), Files::new());
    let most = vec![b' '; 1 << 20];
    let stub = Stub::start(&authority, "127.0.0.1", YEARS, ok(&most)).await;
    let pipe = files.pipe(&authority.pem(), None);
    assert_eq!(ask(&pipe, &stub.origin, question()).await.ok().unwrap().body.len(), 1 << 20);
    let too_much = vec![b' '; (1 << 20) + 1];
    let announced = Stub::start(&authority, "127.0.0.1", YEARS, ok(&too_much)).await;
    assert_eq!(refusal(&pipe, &announced.origin).await.class(), Class::BadReply);
    let mut chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for part in too_much.chunks(4096) {
        chunked.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        chunked.extend_from_slice(part);
        chunked.extend_from_slice(b"\r\n");
    }
    let streamed = Stub::start(&authority, "127.0.0.1", YEARS, chunked).await;
    assert_eq!(refusal(&pipe, &streamed.origin).await.class(), Class::BadReply);
    let nonsense = Stub::start(&authority, "127.0.0.1", YEARS, b"SSH-2.0-x\r\n\r\n".to_vec()).await;
    assert_eq!(refusal(&pipe, &nonsense.origin).await.class(), Class::ConnectionLost);
}

#[tokio::test]
async fn what_breaks_on_the_way_has_its_class() {
    let bao = Bao::start(|_| ()).await;
    let (pipe, origin) = (bao.pipe(&bao.jwt("kms")), bao.origin());
    for (fault, class) in [
        (Fault::Reset, Class::ConnectionLost),
        (Fault::ResetMidBody, Class::ConnectionLost),
        (Fault::Huge((1 << 20) + 100), Class::BadReply),
    ] {
        bao.server.faults().add_times("transit/keys", fault.clone(), 1);
        assert_eq!(refusal(&pipe, &origin).await.class(), class, "{fault:?}");
    }
    bao.server.faults().add_times("transit/keys", Fault::Redirect("https://elsewhere.example".into()), 1);
    let reply = ask(&pipe, &origin, question()).await.ok().unwrap();
    assert_eq!(reply.status, 307, "not followed here");
    assert_eq!(reply.location.as_deref(), Some("https://elsewhere.example/v1/transit/keys/k"));
    bao.server.shutdown().await;
    let error = refusal(&pipe, &origin).await;
    assert!(matches!(error.class(), Class::Unreachable | Class::ConnectionLost), "{error}");
    assert_eq!(refusal(&pipe, &origin).await.class(), Class::Unreachable);
    let plain = origin.replace("https:", "http:").into();
    assert_eq!(refusal(&pipe, &plain).await.class(), Class::Internal, "nothing leaves in clear");
}
