//! A rotation that cannot wait for its activation delay.

use super::support::{Stage, status_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_minimum_raised_inside_the_activation_delay_moves_encrypt_at_once() {
    let stage = Stage::set().await;
    // So long that neither the delay nor a routine look at the key can be what moves it.
    let rotation = "rotation: { activationDelay: 1h, metadataInterval: 10m }";
    let config = stage.config("").replace("rotation: { activationDelay: 1s, metadataInterval: 500ms }", rotation);
    assert!(config.contains(rotation));
    let _program = stage.serve(&config);
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let (bao, key) = (stage.bao(), format!("{}/keys/{}", stage.setup.mount, stage.setup.key));
    bao.call("POST", &format!("{key}/rotate"), &serde_json::json!({})).await.expect("rotated");
    bao.call("POST", &format!("{key}/config"), &serde_json::json!({ "min_encryption_version": 2 }))
        .await
        .expect("raised");
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt goes on");
    assert!(sealed.ciphertext.starts_with(b"vault:v2:"));
    assert_ne!(sealed.key_id, first.key_id);
    let status = client.status().await.expect("Status");
    assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &sealed.key_id), "the next Status announces it");
}
