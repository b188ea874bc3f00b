//! An entrance over a volume that hangs when mode and group of the socket's file are to be set.

use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;

use super::*;
use crate::error::Class;
use crate::front::client::Client;
use crate::front::{Bounds, Rules};
use crate::key::config::{HealthPolicy, Rotation};
use crate::key::{KeyState, refresh};
use crate::request::KmsService;
use crate::telemetry::metrics::PipelineMetrics;
use crate::units::Mode;

/// Longer than anything here takes on a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(30);

/// A door behind which there is no OpenBao.
fn door(config: &front::Config) -> Door {
    let (refresh, _) = refresh::channel(PATIENCE);
    let away = tower::service_fn(async |_| Err(Class::Unreachable.into()));
    Door {
        pipeline: "a".into(),
        key: Arc::new(KeyState::new(&HealthPolicy::default(), &Rotation::default(), refresh)),
        kms: KmsService::new(away),
        metrics: PipelineMetrics::new(),
        rules: watch::channel(Rules::of(config)).1,
        bounds: Bounds::of(1, PATIENCE),
    }
}

fn section(folder: &tempfile::TempDir) -> front::Config {
    serde_json::from_value(serde_json::json!({ "path": folder.path().join("kms.sock") })).expect("a section")
}

/// An entrance to what the process before bound, with another mode.
fn passed_on(
    config: &front::Config,
    fit: impl Fn(&front::Config) -> Result<(), SocketError> + Send + Sync + 'static,
) -> Entrance {
    let before = front::acquire(config, Source::Bind).expect("that of the process before");
    let wanted = front::Config { mode: Mode::new(0o600), ..config.clone() };
    let (_open, opening) = watch::channel(true);
    Entrance::open_with(wanted, before.into_source(), opening, door(config), Arc::new(fit))
}

#[tokio::test]
async fn mode_and_group_are_right_before_the_first_caller_is_let_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = section(&folder);
    let entrance = passed_on(&config, |config| {
        // Time enough for a caller who does not wait for it.
        std::thread::sleep(LET_IN / 8);
        front::fit(config)
    });
    let client = Client::connect(config.path.clone()).await.expect("a connection").with_timeout(PATIENCE);
    client.status().await.expect("served");
    let mode = config.path.symlink_metadata().expect("a socket").mode() & 0o777;
    assert_eq!(mode, 0o600);
    entrance.close(PATIENCE).await;
}

/// One worker, as that of every other pipeline.
#[tokio::test]
async fn what_is_there_is_served_while_its_volume_hangs_and_nobody_else_gets_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = section(&folder);
    let (answers, volume) = mpsc::channel();
    let volume = Mutex::new(volume);
    let fit = move |config: &front::Config| {
        // On the only worker it would be in the way of whoever has to end it.
        volume.lock().expect("ours alone").recv_timeout(PATIENCE).expect("the volume answers before that");
        front::fit(config)
    };
    let entrance = passed_on(&config, fit);

    let client = Client::connect(config.path.clone()).await.expect("a connection").with_timeout(PATIENCE);
    client.status().await.expect("served although the volume hangs");
    let mut state = entrance.state().clone();
    let unfit = state.wait_for(|state| matches!(state, SocketState::Unfit(_))).await.expect("told").clone();
    assert!(matches!(&unfit, SocketState::Unfit(text) if text.contains("does not answer")), "{unfit:?}");
    entrance.close(PATIENCE).await;
    let refused = front::acquire(&config, Source::Bind).expect_err("its file may yet change");
    assert!(matches!(refused, SocketError::Locked { .. }), "{refused}");

    answers.send(()).expect("it waits for its volume");
    let ended = std::time::Instant::now();
    while let Err(error) = front::acquire(&config, Source::Bind) {
        assert!(ended.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
