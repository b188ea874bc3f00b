//! The door over a real socket: what it lets in, what it answers itself, and what one bad call or caller cannot do to
//! the others.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bao_kms_provider::error::{Class, Error};
use bao_kms_provider::front::client::{Client, ClientError};
use bao_kms_provider::front::{self, Source};
use bao_kms_provider::request::{Context, Kind, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::{Code, Status};

use super::puppet::{House, PATIENCE, healthy, reverse, unseen};

/// Never answers.
async fn forever(_: Request) -> Result<Response, Error> {
    std::future::pending().await
}

fn refusal<T>(outcome: Result<T, ClientError>) -> Status {
    match outcome {
        Ok(_) => panic!("an answer where a refusal belongs"),
        Err(ClientError::Call(status)) => *status,
        Err(other) => panic!("no answer at all: {other}"),
    }
}

/// What came with each call.
type Seen = Arc<Mutex<Vec<(Kind, Context)>>>;

/// A door whose puppet mirrors its bytes and keeps what came with each call.
fn mirror() -> (House, Seen) {
    let (key, seen) = (healthy(), Seen::default());
    let (mirrored, kept) = (key.clone(), seen.clone());
    let house = House::open(key, move |request| {
        kept.lock().expect("lock").push((request.kind(), request.context.clone()));
        let answer = reverse(&mirrored, request);
        async move { answer }
    });
    (house, seen)
}

#[tokio::test]
async fn a_seed_goes_in_and_comes_back() {
    let (house, seen) = mirror();
    let client = house.client().await;
    let status = client.status().await.expect("status");
    assert_eq!((status.version.as_str(), status.healthz.as_str()), ("v2", "ok"));
    let sealed = client.encrypt(b"seed".to_vec(), "call-1").await.expect("encrypt");
    assert_eq!(&sealed.ciphertext[..], b"dees");
    assert_eq!(sealed.key_id, status.key_id);
    assert!(!sealed.annotations.is_empty());
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "call-2", &sealed.key_id, sealed.annotations).await;
    assert_eq!(opened.expect("decrypt"), b"seed");
    let seen = seen.lock().expect("lock");
    let calls: Vec<_> = seen.iter().map(|(kind, context)| (*kind, &*context.uid)).collect();
    assert_eq!(calls, [(Kind::Encrypt, "call-1"), (Kind::Decrypt, "call-2")]);
}

#[tokio::test]
async fn the_stack_is_told_how_long_the_caller_waits_and_which_trace_it_joins() {
    let (house, seen) = mirror();
    let client = house.client().await.with_timeout(Duration::from_secs(3));
    client.encrypt(b"seed".to_vec(), "u").await.expect("encrypt");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut call = raw::request(raw::Text { one: b"seed".to_vec(), two: b"u".to_vec() });
    call.metadata_mut().insert("traceparent", parent.parse().expect("a header"));
    call.metadata_mut().insert("tracestate", "k=v".parse().expect("a header"));
    raw::call(&house, "/v2.KeyManagementService/Encrypt", call).await.expect("encrypt");
    let seen = seen.lock().expect("lock");
    let patience = seen[0].1.patience.expect("the caller said how long");
    assert!(patience <= Duration::from_secs(3) && patience > Duration::from_secs(2), "{patience:?}");
    assert!(seen[0].1.trace.is_none());
    assert!(seen[1].1.patience.is_none());
    let trace = seen[1].1.trace.as_ref().expect("a trace");
    assert_eq!((trace.parent.as_str(), trace.state.as_str()), (parent, "k=v"));
}

#[tokio::test]
async fn a_uid_is_safe_to_print_and_short() {
    let (house, seen) = mirror();
    let client = house.client().await;
    client.encrypt(b"seed".to_vec(), &format!("a\n\u{1b}[31m ü{}", "b".repeat(500))).await.expect("encrypt");
    let uid = seen.lock().expect("lock")[0].1.uid.clone();
    assert_eq!(uid.len(), 128);
    assert!(uid.starts_with("a[31mb") && uid.bytes().all(|byte| byte.is_ascii_graphic()), "{uid:?}");
}

#[tokio::test]
async fn status_comes_from_memory_and_says_why() {
    let house = House::open(unseen(), forever);
    let client = house.client().await;
    let status = client.status().await.expect("status");
    assert_eq!((status.version.as_str(), status.healthz.as_str(), status.key_id.as_str()), ("v2", "starting", ""));
    house.key.failed(Class::Sealed, tokio::time::Instant::now());
    assert_eq!(client.status().await.expect("status").healthz, "sealed");
    assert_eq!(house.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn errors_leave_as_class_and_meaning_and_nothing_else() {
    let rows = [
        (Class::InvalidRequest, Code::InvalidArgument),
        (Class::KeyIdUnknown, Code::NotFound),
        (Class::VersionTooOld, Code::FailedPrecondition),
        (Class::KeySoftDeleted, Code::FailedPrecondition),
        (Class::TokenRejected, Code::PermissionDenied),
        (Class::Overloaded, Code::ResourceExhausted),
        (Class::DeadlineExceeded, Code::DeadlineExceeded),
        (Class::Sealed, Code::Unavailable),
        (Class::Internal, Code::Internal),
    ];
    for (class, code) in rows {
        let act = move |_| async move { Err(Error::new(class, "transit/keys/hidden at https://bao-0:8200")) };
        let house = House::open(healthy(), act);
        let status = refusal(house.client().await.encrypt(b"seed".to_vec(), "u").await);
        assert_eq!(status.code(), code, "{class}");
        assert_eq!(status.message(), Error::from(class).public());
        assert!(status.details().is_empty());
    }
}

#[tokio::test]
async fn a_message_above_64_kib_goes_no_further() {
    let (house, _) = mirror();
    let client = house.client().await;
    for size in [64 * 1024, 1024 * 1024] {
        let status = refusal(client.encrypt(vec![7; size], "u").await);
        assert_eq!(status.code(), Code::OutOfRange);
        let annotations = BTreeMap::from([("a.b".to_owned(), vec![7; size])]);
        let decrypt = client.decrypt(b"x".to_vec(), "u", "k", annotations).await;
        assert_eq!(refusal(decrypt).code(), Code::OutOfRange);
    }
    assert_eq!(house.calls.load(Ordering::SeqCst), 0);
    client.encrypt(vec![7; 60 * 1024], "u").await.expect("the connection goes on, and what fits comes in");
}

#[tokio::test]
async fn empty_messages_and_fields_reach_the_stack_as_they_are() {
    let (house, _) = mirror();
    let client = house.client().await;
    assert!(client.encrypt(Vec::new(), "").await.expect("encrypt").ciphertext.is_empty());
    assert!(client.decrypt(Vec::new(), "", "", BTreeMap::new()).await.expect("decrypt").is_empty());
}

#[tokio::test]
async fn what_is_no_message_of_ours_is_refused_and_the_next_call_works() {
    let (house, _) = mirror();
    let crooked = raw::request(raw::Text { one: b"seed".to_vec(), two: vec![0xff, 0xfe] });
    let status = raw::call(&house, "/v2.KeyManagementService/Encrypt", crooked).await.expect_err("no UTF-8");
    assert_eq!(status.code(), Code::Internal);
    // KMS v1 knows no key_id and no associated data, and nobody needs to be told what there is to call.
    for method in [
        "/v2.KeyManagementService/Rewrap",
        "/v1beta1.KeyManagementService/Version",
        "/v1beta1.KeyManagementService/Decrypt",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        let status = raw::call(&house, method, raw::request(raw::Text::default())).await.expect_err("unknown");
        assert_eq!(status.code(), Code::Unimplemented, "{method}");
    }
    assert_eq!(house.calls.load(Ordering::SeqCst), 0);
    for noise in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff"]
    {
        let mut stream = UnixStream::connect(house.path()).await.expect("a connection");
        stream.write_all(noise).await.expect("written");
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "noise keeps its connection: {noise:?}");
    }
    house.client().await.status().await.expect("status");
}

#[tokio::test]
async fn a_panic_is_one_internal_answer() {
    let key = healthy();
    let mirrored = key.clone();
    let house = House::open(key, move |request: Request| {
        assert!(&*request.context.uid != "at-once", "hidden words");
        let key = mirrored.clone();
        async move {
            tokio::task::yield_now().await;
            assert!(&*request.context.uid != "later", "hidden words");
            reverse(&key, request)
        }
    });
    let client = house.client().await;
    for (count, uid) in [(1.0, "at-once"), (2.0, "later")] {
        let status = refusal(client.encrypt(b"seed".to_vec(), uid).await);
        assert_eq!((status.code(), status.message()), (Code::Internal, &*Error::from(Class::Internal).public()));
        assert_eq!(house.value("panics_total"), count);
    }
    client.encrypt(b"seed".to_vec(), "fine").await.expect("the next call works");
}

#[tokio::test]
async fn a_storm_does_not_park_status() {
    for max_calls in [8, 1000] {
        let house = House::open_with(healthy(), max_calls, |_| (), forever);
        let client = house.client().await;
        let storm: Vec<_> = (0..max_calls + 60)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.encrypt(vec![7; 32], "storm").await })
            })
            .collect();
        let inside = async {
            while house.calls.load(Ordering::SeqCst) < max_calls + 60 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, inside).await.expect("the storm is inside");
        for _ in 0..10 {
            let status = tokio::time::timeout(PATIENCE, client.status()).await.expect("not parked");
            assert_eq!(status.expect("status").healthz, "ok");
        }
        assert!(storm.iter().all(|call| !call.is_finished()));
        storm.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_ends_its_call() {
    struct Told(Option<tokio::sync::oneshot::Sender<()>>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.take().map(|tell| tell.send(()));
        }
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Arc::new(Mutex::new(Some(tell)));
    let house = House::open(healthy(), move |_| {
        let guard = Told(tell.lock().expect("lock").take());
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    });
    let client = house.client().await;
    let call = tokio::spawn(async move { client.encrypt(b"seed".to_vec(), "u").await });
    let inside = async {
        while house.calls.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, inside).await.expect("inside");
    call.abort();
    tokio::time::timeout(PATIENCE, told).await.expect("in time").expect("its future was dropped");
}

#[tokio::test]
async fn the_seventeenth_connection_is_closed_at_once() {
    let (house, _) = mirror();
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(UnixStream::connect(house.path()).await.expect("a connection"));
    }
    house.until("connections", 16.0).await;
    let mut late = UnixStream::connect(house.path()).await.expect("accepted by the system");
    let mut byte = [0];
    let read = tokio::time::timeout(PATIENCE, late.read(&mut byte)).await.expect("at once");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(house.value("peers_refused_total"), 1.0);
    assert_eq!(house.value("connections"), 16.0);
    open.pop();
    house.until("connections", 15.0).await;
    house.client().await.status().await.expect("one may come in again");
}

#[tokio::test]
async fn silent_callers_keep_nobody_out_for_long() {
    let (house, _) = mirror();
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(UnixStream::connect(house.path()).await.expect("a connection"));
    }
    house.until("connections", 16.0).await;
    house.until("peers_silent_total", 16.0).await;
    house.until("connections", 0.0).await;
    house.client().await.status().await.expect("whoever speaks comes in");
}

#[tokio::test]
async fn a_door_that_closes_lets_its_socket_go_before_its_last_call() {
    let mut house = House::open(healthy(), forever);
    let client = house.client().await;
    let call = tokio::spawn(async move { client.encrypt(b"seed".to_vec(), "u").await });
    let _silent = UnixStream::connect(house.path()).await.expect("a connection");
    house.until("connections", 2.0).await;
    let config = house.config.clone();
    let task = house.close();
    let acquired = async {
        while front::acquire(&config, Source::Bind).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3), acquired).await.expect("neither lock nor listener waits for a call");
    assert!(!task.is_finished() && !call.is_finished());
}

#[tokio::test]
async fn closing_lets_calls_end_and_leaves_the_file() {
    let (go, gone) = tokio::sync::watch::channel(false);
    let key = healthy();
    let mirrored = key.clone();
    let mut house = House::open(key, move |request| {
        let (mut gone, key) = (gone.clone(), mirrored.clone());
        async move {
            gone.wait_for(|gone| *gone).await.expect("the test lives");
            reverse(&key, request)
        }
    });
    let client = house.client().await;
    let call = tokio::spawn(async move { client.encrypt(b"seed".to_vec(), "u").await });
    let path = house.path();
    let inside = async {
        while house.calls.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, inside).await.expect("inside");
    let task = house.close();
    let refused = async { while UnixStream::connect(&path).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.expect("the door is closed to others");
    assert!(!task.is_finished());
    go.send_replace(true);
    call.await.expect("task").expect("the call in flight is answered");
    tokio::time::timeout(PATIENCE, task).await.expect("in time").expect("served to the end");
    assert!(path.symlink_metadata().is_ok(), "the socket file stays");
}

#[tokio::test]
async fn nobody_there_is_an_error_of_its_own() {
    let folder = super::puppet::folder();
    let error = Client::connect(folder.path().join("kms.sock")).await.expect_err("nobody");
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}

/// Calls that the client would not make.
mod raw {
    use hyper_util::rt::TokioIo;
    use tonic::codegen::http::uri::PathAndQuery;
    use tonic::{Request, Response, Status};

    use super::{House, UnixStream};

    /// A message of two byte fields: an EncryptRequest whose uid need not be text.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Text {
        #[prost(bytes = "vec", tag = "1")]
        pub one: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub two: Vec<u8>,
    }

    pub fn request(message: Text) -> Request<Text> {
        Request::new(message)
    }

    pub async fn call(house: &House, method: &'static str, call: Request<Text>) -> Result<Response<Text>, Status> {
        let path = house.path();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = tonic::transport::Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .expect("a connection");
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.expect("ready");
        let codec = tonic_prost::ProstCodec::<Text, Text>::default();
        grpc.unary(call, PathAndQuery::from_static(method), codec).await
    }
}
