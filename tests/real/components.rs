//! The components themselves: they start, stop and restart as the other tests need it.

use crate::support::apiserver::ApiServer;
use crate::support::etcd::Etcd;
use crate::support::openbao::OpenBao;

#[tokio::test]
async fn openbao_keeps_its_keys_over_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bao = OpenBao::durable(folder.path()).await;
    bao.provision().await;
    bao.stop();
    bao.start().await;
    assert_eq!(bao.read(&bao.key("")).await["latest_version"], 1);
}

#[tokio::test]
async fn an_api_server_without_encryption_stores_in_clear() {
    let folder = tempfile::tempdir().expect("a folder");
    let etcd = Etcd::start(folder.path()).await;
    let file = folder.path().join("encryption.json");
    let clear = "{\"apiVersion\":\"apiserver.config.k8s.io/v1\",\"kind\":\"EncryptionConfiguration\",\
                 \"resources\":[{\"resources\":[\"secrets\"],\"providers\":[{\"identity\":{}}]}]}";
    std::fs::write(&file, clear).expect("a file");
    let server = ApiServer::start(folder.path(), &etcd, &file).await;
    server.store("plain", "readable-text").await;
    let raw = etcd.secret("plain").await;
    assert!(raw.windows(13).any(|window| window == b"readable-text"), "this is what encryption has to change");
    assert_eq!(server.value("plain").await.as_deref(), Ok("readable-text"));
}
