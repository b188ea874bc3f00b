//! Transit against the embedded server: explicit versions, associated data, and the class of each refusal.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bao_kms_provider::backend::transit::{Look, Transit};
use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::error::{Class, Error};
use bao_kms_provider::key::identity::{Config, Identity};
use bao_kms_provider::key::{Metadata, Version};
use bao_kms_provider::request::{Bound, Context, Payload, Progress, Reply, secret};
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::time::Instant;
use tower::Service;

use super::bao::Bao;

const SEED: &[u8] = b"0123456789abcdef0123456789abcdef";

fn version(number: u32, metadata: &Metadata) -> Arc<Version> {
    let config = Config {
        provider_name: "p".into(),
        cluster_id: "c".into(),
        openbao_id: "o".into(),
        transit_mount_id: "t".into(),
        key_lineage_id: "k".into(),
        fingerprint: String::new(),
    };
    let identity = Identity::new(&config, "kms/prod").unwrap();
    Arc::new(Version::new(&identity, number, metadata.keys.get(&number).copied().unwrap_or(1)))
}

async fn call(transit: &Transit, version: &Arc<Version>, payload: Payload) -> Result<Reply, Error> {
    let mut context = Context::new("u");
    context.deadline = Some(Instant::now() + Duration::from_secs(10));
    transit.clone().call(vec![Bound { payload, version: version.clone(), context }]).await?.remove(0)
}

async fn seal(transit: &Transit, version: &Arc<Version>) -> Result<bytes::Bytes, Error> {
    match call(transit, version, Payload::Encrypt(secret(SEED.to_vec()))).await? {
        Reply::Encrypted(text) => Ok(text),
        Reply::Decrypted(_) => panic!("a seed for a seed"),
    }
}

async fn open(transit: &Transit, version: &Arc<Version>, text: bytes::Bytes) -> Result<Vec<u8>, Error> {
    match call(transit, version, Payload::Decrypt(text)).await? {
        Reply::Decrypted(seed) => Ok(seed.expose_secret().to_vec()),
        Reply::Encrypted(_) => panic!("a text for a text"),
    }
}

#[tokio::test]
async fn seeds_go_and_come_back_under_the_version_that_was_asked_for() {
    let bao = Bao::start(|_| ()).await;
    let transit = bao.transit();
    bao.root().call("POST", "transit/keys/k8s-etcd/rotate", &json!({})).await.unwrap();
    let Look { metadata, date, .. } = transit.metadata(Progress::default()).await.unwrap();
    assert_eq!((metadata.latest_version, metadata.keys.len()), (2, 2));
    let off = date.unwrap().duration_since(SystemTime::now()).unwrap_or_else(|behind| behind.duration());
    assert!(off < Duration::from_secs(60));
    for number in [1, 2] {
        let version = version(number, &metadata);
        let text = seal(&transit, &version).await.unwrap();
        assert!(text.starts_with(format!("vault:v{number}:").as_bytes()), "{text:?}");
        assert_eq!(open(&transit, &version, text).await.unwrap(), SEED);
        transit.probe(&version, Progress::default()).await.unwrap();
    }
    assert_eq!(transit.disable_upsert().await.unwrap(), Some(false));
}

#[tokio::test]
async fn nothing_opens_under_another_version_or_other_associated_data() {
    let bao = Bao::start(|_| ()).await;
    let transit = bao.transit();
    bao.root().call("POST", "transit/keys/k8s-etcd/rotate", &json!({})).await.unwrap();
    let metadata = transit.metadata(Progress::default()).await.unwrap().metadata;
    let (first, second) = (version(1, &metadata), version(2, &metadata));
    let text = seal(&transit, &first).await.unwrap();
    let error = open(&transit, &second, text.clone()).await.unwrap_err();
    assert_eq!((error.class(), error.version()), (Class::CiphertextInvalid, Some(2)));
    let mut flipped = text.to_vec();
    flipped[20] = if flipped[20] == b'A' { b'B' } else { b'A' };
    assert_eq!(open(&transit, &first, flipped.into()).await.unwrap_err().class(), Class::CiphertextInvalid);
    let injected = [&text[..], b"\",\"context\":\"x"].concat();
    assert_eq!(open(&transit, &first, injected.into()).await.unwrap_err().class(), Class::CiphertextInvalid);
}

#[tokio::test]
async fn each_refusal_has_its_class_and_its_version() {
    let bao = Bao::start(|_| ()).await;
    let (transit, root) = (bao.transit(), bao.root());
    let metadata = transit.metadata(Progress::default()).await.unwrap().metadata;
    let (first, third) = (version(1, &metadata), version(3, &metadata));
    let text = seal(&transit, &first).await.unwrap();
    let error = seal(&transit, &third).await.unwrap_err();
    assert_eq!((error.class(), error.version()), (Class::StaleNode, Some(3)));
    let ahead = bytes::Bytes::from(String::from_utf8(text.to_vec()).unwrap().replace(":v1:", ":v3:"));
    assert_eq!(open(&transit, &third, ahead).await.unwrap_err().class(), Class::StaleNode);
    root.call("POST", "transit/keys/k8s-etcd/rotate", &json!({})).await.unwrap();
    root.call("POST", "transit/keys/k8s-etcd/config", &json!({"min_decryption_version": 2})).await.unwrap();
    let error = open(&transit, &first, text.clone()).await.unwrap_err();
    assert_eq!((error.class(), error.version()), (Class::VersionTooOld, Some(1)));
    bao.server.faults().add_times("encrypt", Fault::WrongKeyVersion(1), 1);
    let second = version(2, &transit.metadata(Progress::default()).await.unwrap().metadata);
    assert_eq!(seal(&transit, &second).await.unwrap_err().class(), Class::WrongVersion);
    bao.server.faults().add_times("encrypt", Fault::Malformed, 1);
    assert_eq!(seal(&transit, &second).await.unwrap_err().class(), Class::BadReply);
    root.call("DELETE", "transit/keys/k8s-etcd/soft-delete", &json!(null)).await.unwrap();
    assert_eq!(seal(&transit, &second).await.unwrap_err().class(), Class::KeySoftDeleted);
    assert!(transit.metadata(Progress::default()).await.unwrap().metadata.soft_deleted);
    bao.server.state().seal();
    assert_eq!(seal(&transit, &second).await.unwrap_err().class(), Class::Sealed);
    bao.server.state().unseal();
    root.call("POST", "transit/keys/k8s-etcd/soft-delete-restore", &json!({})).await.unwrap();
    assert!(seal(&transit, &second).await.is_ok(), "the same token, the same session");
}

#[tokio::test]
async fn a_missing_key_and_a_missing_right_are_told_apart_where_openbao_does() {
    let bao = Bao::start(|_| ()).await;
    let (session, endpoint) = bao.session(&bao.jwt("kms"));
    let bao_service = bao_kms_provider::layers::bao_stack(session, endpoint);
    let mut config = bao.transit_config();
    config.key = "another".into();
    let error =
        Transit::new(&config, bao_service, Duration::from_secs(5)).metadata(Progress::default()).await.unwrap_err();
    assert_eq!(error.class(), Class::TokenRejected, "the policy shows its own key only");
    assert!(error.detail().contains("policy"), "{error}");
    let root = bao.root();
    root.call("POST", "transit/keys/k8s-etcd/config", &json!({"deletion_allowed": true})).await.unwrap();
    root.call("DELETE", "transit/keys/k8s-etcd", &json!(null)).await.unwrap();
    let transit = bao.transit();
    assert_eq!(transit.metadata(Progress::default()).await.unwrap_err().class(), Class::KeyMissing);
    let policy = json!({"policy": "path \"transit/keys/k8s-etcd\" { capabilities = [\"read\"] }"});
    root.call("POST", "sys/policies/acl/kms", &policy).await.unwrap();
    assert_eq!(transit.disable_upsert().await.unwrap(), None, "the policy hides it");
}
