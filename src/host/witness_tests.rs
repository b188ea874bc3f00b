//! The file itself: what is written is read again, what cannot be believed is told and replaced, and no other key's word
//! counts.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::error::Class;
use crate::key::config::{HealthPolicy, Rotation};
use crate::key::identity::tests::config as identity;
use crate::key::{Identity, Metadata, Pins, View, refresh};

struct Scene {
    dir: tempfile::TempDir,
    metrics: Arc<PipelineMetrics>,
}

fn fingerprint(key: &str, activation_delay_ms: u64) -> String {
    let identity = Identity::of(&identity(), "");
    Pins { identity: &identity, mount: "transit", key, activation_delay_ms }.fingerprint()
}

fn key() -> KeyState {
    KeyState::new(&HealthPolicy::default(), &Rotation::default(), refresh::channel(Duration::from_secs(30)).0)
}

/// A key with a view in which this version, made a second for each number after the first, is the newest and the active one.
fn known(latest: u32) -> KeyState {
    let keys: serde_json::Map<_, _> = (1..=latest).map(|n| (n.to_string(), (1_000 + n).into())).collect();
    let metadata: Metadata =
        serde_json::from_value(serde_json::json!({ "type": "aes256-gcm96", "latest_version": latest, "keys": keys }))
            .expect("metadata");
    let view = View::at(&Identity::of(&identity(), ""), &metadata, 9_000, 120, None).expect("a view");
    let key = key();
    key.publish(Arc::new(view));
    key.succeeded(tokio::time::Instant::now());
    key
}

fn seen(latest: u32) -> Seen {
    let version = (latest, u64::from(1_000 + latest));
    Seen { active: version, latest: version }
}

// === impl Scene ===

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), metrics: PipelineMetrics::new() }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("a.witness.json")
    }

    fn witness(&self, fingerprint: String) -> Witness {
        Witness::new(Some(&Config { file: self.file() }), fingerprint, "a".into(), self.metrics.clone())
    }

    /// What a process that starts with this fingerprint remembers.
    async fn recalled(&self, fingerprint: String) -> Option<Seen> {
        let key = key();
        self.witness(fingerprint).recall(&key).await;
        key.remembered()
    }

    async fn kept(&self, key: &KeyState) {
        self.witness(ours()).keep(key).await;
    }

    fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("a folder").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

fn ours() -> String {
    fingerprint("k", 120_000)
}

#[tokio::test]
async fn what_is_kept_is_recalled_by_the_next_process() {
    let scene = Scene::new();
    assert_eq!(scene.recalled(ours()).await, None);
    for latest in [1, 2] {
        scene.kept(&known(latest)).await;
        assert_eq!(scene.recalled(ours()).await, Some(seen(latest)));
    }
    assert_eq!(scene.metrics.witness_trouble(), 0);
    assert_eq!(scene.entries(), ["a.witness.json"], "nothing is left beside it");
    let mode = std::fs::metadata(scene.file()).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn another_keys_word_does_not_count_and_another_delay_is_no_other_key() {
    let scene = Scene::new();
    scene.kept(&known(3)).await;
    assert_eq!(scene.recalled(fingerprint("other", 120_000)).await, None);
    assert_eq!(scene.recalled(fingerprint("k", 60_000)).await, Some(seen(3)));
    assert_eq!(scene.recalled("no fingerprint".to_owned()).await, None);
}

#[tokio::test]
async fn what_a_process_hands_over_is_newer_than_the_file() {
    let scene = Scene::new();
    scene.kept(&known(3)).await;
    let key = key();
    key.remember(seen(4));
    scene.witness(ours()).recall(&key).await;
    assert_eq!(key.remembered(), Some(seen(4)));
}

#[tokio::test]
async fn what_is_in_doubt_is_not_kept() {
    let scene = Scene::new();
    scene.kept(&known(3)).await;
    let rolled_back = known(2);
    rolled_back.failed(Class::KeyRolledBack, tokio::time::Instant::now());
    scene.kept(&rolled_back).await;
    scene.kept(&key()).await;
    assert_eq!(scene.recalled(ours()).await, Some(seen(3)));
}

#[tokio::test]
async fn a_file_that_cannot_be_believed_is_told_and_replaced() {
    let whole = r#"{"format":1,"fingerprint":"f","active":{"version":1,"createdUnix":1},"latest":{"version":1,"createdUnix":1}}"#;
    let long = " ".repeat(5_000);
    for text in ["", "{", "\0\0\0", &whole[..whole.len() - 9], &whole.replace("\"format\":1", "\"format\":2"), &long] {
        let scene = Scene::new();
        std::fs::write(scene.file(), text).expect("written");
        assert_eq!(scene.recalled(ours()).await, None, "{text}");
        assert_eq!(scene.metrics.witness_trouble(), 1, "{text}");
        scene.kept(&known(2)).await;
        assert_eq!(scene.metrics.witness_trouble(), 0, "{text}");
        assert_eq!(scene.recalled(ours()).await, Some(seen(2)), "{text}");
    }
}

#[tokio::test]
async fn a_file_that_others_may_write_is_not_believed() {
    let scene = Scene::new();
    scene.kept(&known(2)).await;
    std::fs::set_permissions(scene.file(), std::fs::Permissions::from_mode(0o666)).expect("mode");
    assert_eq!(scene.recalled(ours()).await, None);
    assert_eq!(scene.metrics.witness_trouble(), 1);
}

#[tokio::test]
async fn a_place_that_is_missing_is_trouble_until_it_is_there() {
    let scene = Scene::new();
    let place = scene.dir.path().join("later");
    let config = Config { file: place.join("a.witness.json") };
    let witness = Witness::new(Some(&config), ours(), "a".into(), scene.metrics.clone());
    witness.recall(&key()).await;
    assert_eq!(scene.metrics.witness_trouble(), 0, "none yet is no trouble");
    witness.keep(&known(2)).await;
    assert_eq!(scene.metrics.witness_trouble(), 1);
    std::fs::create_dir(&place).expect("a directory");
    witness.keep(&known(2)).await;
    assert_eq!(scene.metrics.witness_trouble(), 0);
    std::fs::remove_file(&config.file).expect("removed");
    witness.keep(&known(2)).await;
    assert!(config.file.exists(), "one that is lost is made again");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_left_alone() {
    let scene = Scene::new();
    let witness = scene.witness(ours());
    let _thread_at_the_disk = witness.disk.clone().lock_owned().await;
    let began = tokio::time::Instant::now();
    witness.keep(&known(2)).await;
    assert_eq!(scene.metrics.witness_trouble(), 1);
    assert!(began.elapsed() <= PATIENCE && !scene.file().exists());
}

#[tokio::test]
async fn without_a_file_nothing_is_kept() {
    let scene = Scene::new();
    let witness = Witness::new(None, ours(), "a".into(), scene.metrics.clone());
    witness.recall(&key()).await;
    witness.keep(&known(2)).await;
    assert!(scene.entries().is_empty());
}
