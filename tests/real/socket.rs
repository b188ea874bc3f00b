//! Encrypt and Decrypt through our socket against a real Transit: explicit versions, associated data that binds, and what
//! a raised minimum means.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::openbao::OpenBao;
use crate::support::provider::{Login, Setup};
use crate::support::wait::{LONG, until};

const SEED: &[u8] = b"0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn each_version_opens_what_it_wrote_until_the_minimum_passes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::dev(folder.path()).await;
    bao.provision().await;
    let provider = Setup::new(folder.path(), &bao, Login::Jwt).start();
    let first_id = provider.status("ok").await;
    let client = provider.connect().await;

    let first = client.encrypt(SEED.to_vec(), "one").await.expect("Encrypt");
    assert_eq!(first.key_id, first_id);
    assert!(first.ciphertext.starts_with(b"vault:v1:"));
    assert_eq!(first.ciphertext.len(), 89, "what kube-apiserver stores for a 32-byte seed");

    // The associated data binds: Transit itself refuses the text without it.
    let bare = json!({ "ciphertext": String::from_utf8(first.ciphertext.to_vec()).expect("text") });
    let (status, _) = bao.call("POST", &format!("transit/decrypt/{}", bao.setup.key), bare).await.expect("an answer");
    assert_eq!(status, 400);

    bao.write(&bao.key("/rotate"), json!({})).await;
    let second_id = until("the new version", LONG, async || {
        let status = client.status().await.map_err(|error| format!("{error:?}"))?;
        if status.key_id == first_id { Err("the old one".to_owned()) } else { Ok(status.key_id) }
    })
    .await;
    let second = client.encrypt(SEED.to_vec(), "two").await.expect("Encrypt");
    assert_eq!(second.key_id, second_id);
    assert!(second.ciphertext.starts_with(b"vault:v2:"));

    for (name, reply) in [("three", &first), ("four", &second)] {
        let opened = client.decrypt(reply.ciphertext.clone(), name, &reply.key_id, reply.annotations.clone()).await;
        assert_eq!(opened.expect("Decrypt"), SEED);
    }
    // The annotations of one version do not open the text of another.
    let crossed = client.decrypt(first.ciphertext.clone(), "five", &second.key_id, second.annotations.clone()).await;
    let refused = crossed.expect_err("crossed").to_string();
    assert!(refused.contains("ciphertext_invalid: "), "{refused}");

    bao.write(&bao.key("/config"), json!({ "min_decryption_version": 2 })).await;
    until("the minimum to be noticed", LONG, async || {
        let old = client.decrypt(first.ciphertext.clone(), "six", &first.key_id, first.annotations.clone()).await;
        match old {
            Ok(_) => Err("it still opens".to_owned()),
            Err(error)
                if error.to_string().contains("version_too_old: ") && error.to_string().contains("(key version 1)") =>
            {
                Ok(())
            }
            Err(error) => Err(format!("{error:?}")),
        }
    })
    .await;
    let kept = client.decrypt(second.ciphertext.clone(), "seven", &second.key_id, second.annotations.clone()).await;
    assert_eq!(kept.expect("Decrypt"), SEED);
}

#[tokio::test]
async fn the_program_never_says_a_secret_and_asks_only_for_what_its_policy_gives() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::dev(folder.path()).await;
    bao.provision().await;
    let mut setup = Setup::new(folder.path(), &bao, Login::Jwt);
    let token = std::fs::read_to_string(&setup.jwt).expect("the JWT");
    setup.config["telemetry"] = json!({ "logs": { "level": "trace" } });
    let provider = setup.start();
    provider.status("ok").await;
    let client = provider.connect().await;
    let reply = client.encrypt(SEED.to_vec(), "one").await.expect("Encrypt");
    let opened = client.decrypt(reply.ciphertext.clone(), "two", &reply.key_id, reply.annotations.clone()).await;
    assert_eq!(opened.expect("Decrypt"), SEED);

    let log = provider.log();
    let ciphertext = String::from_utf8(reply.ciphertext.to_vec()).expect("text");
    for secret in [&token, &STANDARD.encode(SEED), "0123456789abcdef", &ciphertext, "s."] {
        // OpenBao's tokens start with `s.`; the shortest one has 24 characters behind it.
        let found = if secret == "s." { holds_token(&log) } else { log.contains(secret) };
        assert!(!found, "the log holds a secret");
    }
    assert!(!log.contains("token_rejected"), "the least policy is enough");
}

fn holds_token(log: &str) -> bool {
    log.match_indices("s.").any(|(at, _)| {
        log[at + 2..].bytes().take(24).filter(u8::is_ascii_alphanumeric).count() == 24
            && !log[..at].ends_with(|c: char| c.is_ascii_alphanumeric())
    })
}

/// Two rotations and these minima, all inside the activation delay: Encrypt moves at once, and no further than it has to.
async fn moves_to_the_lowest_allowed(minima: Value, old_opens: bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::dev(folder.path()).await;
    bao.provision().await;
    let mut setup = Setup::new(folder.path(), &bao, Login::Jwt);
    setup.pipeline()["rotation"] = json!({ "activationDelay": "1h", "metadataInterval": "10m" });
    let provider = setup.start();
    let first_id = provider.status("ok").await;
    let client = provider.connect().await;
    let old = client.encrypt(SEED.to_vec(), "old").await.expect("Encrypt");
    for _ in 0..2 {
        bao.write(&bao.key("/rotate"), json!({})).await;
    }
    bao.write(&bao.key("/config"), minima).await;
    assert_eq!(bao.read(&bao.key("")).await["latest_version"], 3, "there is a version to jump to by mistake");

    let sealed = client.encrypt(SEED.to_vec(), "one").await.expect("Encrypt goes on");
    assert!(sealed.ciphertext.starts_with(b"vault:v2:"), "the newest version waits for its delay");
    assert_ne!(sealed.key_id, first_id);
    let status = client.status().await.expect("Status");
    assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &sealed.key_id), "the next Status announces it");
    let again = client.encrypt(SEED.to_vec(), "two").await.expect("Encrypt");
    assert!(again.ciphertext.starts_with(b"vault:v2:"));
    assert_eq!(again.key_id, sealed.key_id, "what Status said");
    let opened = client.decrypt(sealed.ciphertext.clone(), "three", &sealed.key_id, sealed.annotations.clone()).await;
    assert_eq!(opened.expect("Decrypt"), SEED);

    let opened = client.decrypt(old.ciphertext.clone(), "four", &old.key_id, old.annotations.clone()).await;
    if old_opens {
        assert_eq!(opened.expect("Decrypt"), SEED);
    } else {
        let refused = opened.expect_err("below the minimum").to_string();
        assert!(refused.contains("version_too_old: ") && refused.contains("(key version 1)"), "{refused}");
    }
}

#[tokio::test]
async fn a_minimum_raised_inside_the_activation_delay_moves_encrypt_at_once() {
    moves_to_the_lowest_allowed(json!({ "min_encryption_version": 2 }), true).await;
}

#[tokio::test]
async fn both_minima_raised_inside_the_activation_delay_move_encrypt_and_close_what_is_below() {
    moves_to_the_lowest_allowed(json!({ "min_encryption_version": 2, "min_decryption_version": 2 }), false).await;
}
