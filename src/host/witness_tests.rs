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
fn known_to(latest: u32) -> KeyState {
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

    fn at(&self, file: Option<PathBuf>, fingerprint: String) -> Arc<Witness> {
        let config = file.map(|file| Config { file });
        Witness::new(config.as_ref(), fingerprint, "a".into(), self.metrics.clone(), Arc::default())
    }

    fn witness(&self, fingerprint: String) -> Arc<Witness> {
        self.at(Some(self.file()), fingerprint)
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
        scene.kept(&known_to(latest)).await;
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
    scene.kept(&known_to(3)).await;
    assert_eq!(scene.recalled(fingerprint("other", 120_000)).await, None);
    assert_eq!(scene.recalled(fingerprint("k", 60_000)).await, Some(seen(3)));
    assert_eq!(scene.recalled("no fingerprint".to_owned()).await, None);
}

#[tokio::test]
async fn of_what_a_process_hands_over_and_the_file_the_newer_is_believed() {
    let scene = Scene::new();
    scene.kept(&known_to(3)).await;
    for (told, believed) in [(2, 3), (4, 4)] {
        let key = key();
        key.remember(seen(told));
        scene.witness(ours()).recall(&key).await;
        assert_eq!(key.remembered(), Some(seen(believed)));
    }
}

#[tokio::test]
async fn what_is_in_doubt_is_not_kept() {
    let scene = Scene::new();
    scene.kept(&known_to(3)).await;
    let rolled_back = known_to(2);
    rolled_back.remember(seen(3));
    scene.kept(&rolled_back).await;
    let without_a_right = known_to(4);
    without_a_right.failed(Class::TokenRejected, tokio::time::Instant::now());
    scene.kept(&without_a_right).await;
    scene.kept(&key()).await;
    assert_eq!(scene.recalled(ours()).await, Some(seen(3)));
}

/// As after a start for which the disk was too slow, or when the section comes with a reload.
#[tokio::test]
async fn a_file_that_knows_more_is_left_as_it_is_and_believed() {
    let scene = Scene::new();
    scene.kept(&known_to(3)).await;
    let blind = known_to(2);
    scene.kept(&blind).await;
    assert_eq!(blind.remembered(), Some(seen(3)));
    assert!(blind.trusted().is_none());
    assert_eq!(scene.recalled(ours()).await, Some(seen(3)));
    assert_eq!(scene.metrics.witness_trouble(), 0);
}

const WHOLE: &str =
    r#"{"format":1,"fingerprint":"f","active":{"version":1,"createdUnix":1},"latest":{"version":1,"createdUnix":1}}"#;

#[tokio::test]
async fn a_record_that_is_torn_is_made_again() {
    for text in ["", "\0\0\0", &WHOLE[..20], &WHOLE[..WHOLE.len() - 9]] {
        let scene = Scene::new();
        std::fs::write(scene.file(), text).expect("written");
        assert_eq!(scene.recalled(ours()).await, None, "{text}");
        scene.kept(&known_to(2)).await;
        assert_eq!(scene.metrics.witness_trouble(), 0, "{text}");
        assert_eq!(scene.recalled(ours()).await, Some(seen(2)), "{text}");
    }
}

/// A private key under a name that was copied, what a newer program wrote, what is too long to be anything of ours.
#[tokio::test]
async fn what_is_no_record_of_ours_is_left_as_it_is() {
    let newer = r#"{"format":2,"versions":{"1":1}}"#;
    let long = format!("{}{}", WHOLE, " ".repeat(5_000));
    for text in ["-----BEGIN PRIVATE KEY-----", "{", "[1]", newer, &long] {
        let scene = Scene::new();
        std::fs::write(scene.file(), text).expect("written");
        assert_eq!(scene.recalled(ours()).await, None, "{text}");
        scene.kept(&known_to(2)).await;
        assert_eq!(scene.metrics.witness_trouble(), 1, "{text}");
        assert_eq!(std::fs::read_to_string(scene.file()).expect("there"), text);
    }
}

#[tokio::test]
async fn what_a_newer_program_wrote_is_read_as_far_as_it_says_what_we_know() {
    let scene = Scene::new();
    scene.kept(&known_to(2)).await;
    let ours_of_tomorrow = std::fs::read_to_string(scene.file()).expect("there");
    let ours_of_tomorrow = ours_of_tomorrow.replace("{\"format\":1,", "{\"format\":2,\"more\":[],");
    std::fs::write(scene.file(), &ours_of_tomorrow).expect("written");
    assert_eq!(scene.recalled(ours()).await, Some(seen(2)));
    // And not made one of ours, which would lose what we do not know.
    scene.kept(&known_to(3)).await;
    assert_eq!(scene.metrics.witness_trouble(), 1);
    assert_eq!(std::fs::read_to_string(scene.file()).expect("there"), ours_of_tomorrow);
}

/// The process before has served with the key as it is: what it told has been judged, and the file is from before that.
#[tokio::test]
async fn a_file_that_contradicts_what_was_told_is_made_anew() {
    let scene = Scene::new();
    scene.kept(&known_to(3)).await;
    let file = std::fs::read_to_string(scene.file()).expect("there").replace("1003", "903");
    std::fs::write(scene.file(), file).expect("written");
    let key = known_to(3);
    key.remember(seen(3));
    scene.kept(&key).await;
    assert_eq!((key.remembered(), key.trusted().is_some()), (Some(seen(3)), true));
    assert_eq!(scene.recalled(ours()).await, Some(seen(3)));
}

#[tokio::test]
async fn what_was_left_behind_in_the_middle_of_a_write_is_removed_when_it_is_old() {
    let scene = Scene::new();
    let beside = |id: &str| scene.dir.path().join(format!("a.witness.json.{id}.new"));
    let (old, young, other) = (beside("00000000000000aa"), beside("00000000000000bb"), beside("mine"));
    for path in [&old, &young, &other] {
        std::fs::write(path, "{").expect("written");
    }
    let long_ago = std::time::SystemTime::now() - LEFT_BEHIND * 2;
    for path in [&old, &other] {
        File::options().write(true).open(path).and_then(|file| file.set_modified(long_ago)).expect("aged");
    }
    scene.kept(&known_to(2)).await;
    assert_eq!((old.exists(), young.exists(), other.exists()), (false, true, true));
}

#[tokio::test]
async fn a_file_that_others_may_write_is_not_believed_and_not_replaced() {
    let scene = Scene::new();
    scene.kept(&known_to(3)).await;
    std::fs::set_permissions(scene.file(), std::fs::Permissions::from_mode(0o666)).expect("mode");
    assert_eq!(scene.recalled(ours()).await, None);
    scene.kept(&known_to(2)).await;
    assert_eq!(scene.metrics.witness_trouble(), 1);
    std::fs::set_permissions(scene.file(), std::fs::Permissions::from_mode(0o600)).expect("mode");
    assert_eq!(scene.recalled(ours()).await, Some(seen(3)));
}

#[tokio::test]
async fn a_place_that_is_missing_is_trouble_until_it_is_there() {
    let scene = Scene::new();
    let place = scene.dir.path().join("later");
    let file = place.join("a.witness.json");
    let witness = scene.at(Some(file.clone()), ours());
    witness.recall(&key()).await;
    assert_eq!(scene.metrics.witness_trouble(), 1);
    witness.keep(&known_to(2)).await;
    assert_eq!(scene.metrics.witness_trouble(), 1);
    std::fs::create_dir(&place).expect("a directory");
    witness.keep(&known_to(2)).await;
    assert_eq!(scene.metrics.witness_trouble(), 0);
    std::fs::remove_file(&file).expect("removed");
    witness.keep(&known_to(2)).await;
    assert!(file.exists(), "one that is lost is made again");
}

#[tokio::test]
async fn a_symlink_stays_one_and_what_cannot_be_put_in_place_leaves_nothing() {
    let scene = Scene::new();
    let real = scene.dir.path().join("real.json");
    std::fs::write(&real, "").expect("written");
    std::os::unix::fs::symlink(&real, scene.file()).expect("a symlink");
    std::fs::rename(&real, scene.dir.path().join("away")).expect("moved");
    scene.kept(&known_to(2)).await;
    assert_eq!((scene.metrics.witness_trouble(), scene.file().is_symlink()), (1, true), "it leads nowhere yet");
    std::fs::rename(scene.dir.path().join("away"), &real).expect("moved back");
    scene.kept(&known_to(2)).await;
    assert!(scene.file().is_symlink() && std::fs::read_to_string(&real).expect("there").contains("\"version\":2"));

    let place = scene.dir.path().join("directory");
    std::fs::create_dir(&place).expect("a directory");
    let record = Record::of(seen(2), ours());
    assert!(write(&place, &record).is_err());
    let mut left = scene.entries();
    left.sort();
    assert_eq!(left, ["a.witness.json", "directory", "real.json"]);
}

/// In real time: the clock of a test does not run ahead while a thread is at work.
#[tokio::test]
async fn a_disk_that_hangs_holds_up_a_start_for_two_seconds_and_no_look_after_it() {
    let scene = Scene::new();
    let witness = scene.witness(ours());
    let file: Arc<Path> = scene.file().into();
    let (free, hangs) = std::sync::mpsc::channel::<()>();
    let began = std::time::Instant::now();
    let hung = witness.at_disk(&file, move |_| {
        // Ends when the sender is dropped.
        let _ = hangs.recv();
        Ok(())
    });
    assert!(matches!(hung.await, Err(WitnessError::Hangs { .. })));
    assert!(began.elapsed() >= PATIENCE);
    // No second thread goes there, and nobody waits for ever.
    let began = std::time::Instant::now();
    witness.keep(&known_to(2)).await;
    assert!(began.elapsed() < PATIENCE * 2 && !scene.file().exists());
    assert_eq!(scene.metrics.witness_trouble(), 1);
    drop(free);
    drop(witness.disk.clone().lock_owned().await);
    witness.keep(&known_to(2)).await;
    assert_eq!(scene.metrics.witness_trouble(), 0);
    assert_eq!(scene.recalled(ours()).await, Some(seen(2)));
}

/// Looks that follow each other fast take turns; none of them takes another one for a disk that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn looks_that_come_together_take_turns() {
    let scene = Scene::new();
    let witness = scene.witness(ours());
    let mut looks = tokio::task::JoinSet::new();
    for latest in 1..=20 {
        let witness = witness.clone();
        looks.spawn(async move { witness.keep(&known_to(latest)).await });
    }
    looks.join_all().await;
    assert_eq!((scene.metrics.witness_trouble(), witness.told.lock().expect("lock").clone()), (0, None));
    assert_eq!(scene.recalled(ours()).await, Some(seen(20)), "who knows less leaves it as it is");
}

#[tokio::test]
async fn without_a_file_nothing_is_kept() {
    let scene = Scene::new();
    let witness = scene.at(None, ours());
    witness.recall(&key()).await;
    witness.keep(&known_to(2)).await;
    assert!(scene.entries().is_empty());
}
