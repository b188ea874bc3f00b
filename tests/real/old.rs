//! API servers of other releases: the longer lane, `tests/real/run --all`.

use crate::support::apiserver::{ApiServer, encryption};
use crate::support::etcd::Etcd;
use crate::support::openbao::OpenBao;
use crate::support::provider::{Login, Setup};

#[tokio::test]
#[ignore = "tests/real/run --all builds the other API servers"]
async fn api_servers_of_other_releases_store_and_read_secrets() {
    let programs = std::env::var("BAO_KMS_API_SERVERS").expect("BAO_KMS_API_SERVERS: start tests/real/run --all");
    for program in programs.split_whitespace() {
        let folder = tempfile::tempdir().expect("a folder");
        let bao = OpenBao::dev(folder.path()).await;
        bao.provision().await;
        let etcd = Etcd::start(folder.path()).await;
        let provider = Setup::new(folder.path(), &bao, Login::Jwt).start();
        provider.status("ok").await;
        let file = folder.path().join("encryption.json");
        std::fs::write(&file, encryption(&provider.setup.socket)).expect("a file");
        let mut server = ApiServer::start_one(program, folder.path(), &etcd, &file).await;
        server.store("first", "only-etcd-must-not-see-this").await;
        let raw = etcd.secret("first").await;
        assert!(raw.starts_with(b"k8s:enc:kms:v2:"), "{program}");
        server.restart().await;
        assert_eq!(server.value("first").await.as_deref(), Ok("only-etcd-must-not-see-this"), "{program}");
    }
}
