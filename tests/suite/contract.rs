//! The embedded server keeps the contract, row by row.

use bao_kms_provider::dev::client::Endpoint;
use bao_kms_provider::dev::contract::{Target, rows, run};
use bao_kms_provider::dev::server::{Options, Server};

#[tokio::test]
async fn the_embedded_server_keeps_the_contract() {
    let server = Server::start(Options::default()).await.unwrap();
    let target = Target {
        endpoint: Endpoint { url: server.url(), ca_pem: server.ca_pem() },
        root_token: server.root_token(),
        unseal_key: Some(server.state().unseal_key()),
    };
    let report = run(&target).await.unwrap();
    for failure in &report.failed {
        eprintln!("{failure}");
    }
    assert!(report.failed.is_empty(), "{} rows are not kept", report.failed.len());
    assert_eq!(report.passed, rows().len());
}

#[test]
fn every_row_has_a_name_of_its_own() {
    let mut names: Vec<&str> = rows().iter().map(|row| row.name).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1]);
    }
}
