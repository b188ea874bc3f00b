//! `health.outage: coast` in a running program: OpenBao's absence leaves the last key_id in Status, while trouble with the
//! key or with the right to use it takes it away at once, also when it is found on the return from an absence.

use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::{Fault, FaultId, Server};
use bao_kms_provider::front::client::{Client, StatusResponse};
use serde_json::{Value, json};

use super::load::round;
use super::support::{KEY, Program, Stage, status_until};

/// How long Status is looked at for something that must not come.
const WATCHED: Duration = Duration::from_secs(2);

/// What is wrong with the key or with the right to use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    SoftDeleted,
    PolicyTaken,
    /// The key of an older backup: its newest version is gone. It is no trouble as long as a standby that lags
    /// explains it.
    RolledBack,
    /// A version under the same number that was made at another time.
    Recreated,
}

const TROUBLES: [Trouble; 4] = [Trouble::SoftDeleted, Trouble::PolicyTaken, Trouble::RolledBack, Trouble::Recreated];

/// The program, which reaches OpenBao through a node of its own: what is away for it is there for the administrator.
struct Scene {
    _program: Program,
    client: Client,
    node: Server,
    stage: Stage,
    /// What Status says while all is well: the key's second version.
    key_id: String,
    /// The key's metadata as they were before it.
    old: String,
}

// === impl Trouble ===

impl Trouble {
    fn class(self) -> &'static str {
        match self {
            Self::SoftDeleted => "key_soft_deleted",
            Self::PolicyTaken => "token_rejected",
            Self::RolledBack | Self::Recreated => "key_rolled_back",
        }
    }
}

// === impl Scene ===

impl Scene {
    async fn set() -> Self {
        let stage = Stage::set().await;
        let node = stage.node(0).await;
        let config = stage.config_of(&[node.url()], "    health: { outage: coast, tolerance: 1s }");
        let program = stage.serve(&config);
        let client = stage.client().await;
        let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
        let old = admin(&stage, "GET", KEY, &Value::Null).await;
        admin(&stage, "POST", &format!("{KEY}/rotate"), &json!({})).await;
        let rotated = |status: &StatusResponse| status.healthz == "ok" && status.key_id != first.key_id;
        let key_id = status_until(&client, "rotated", rotated).await.key_id;
        Self { _program: program, client, node, stage, key_id, old }
    }

    /// OpenBao is away until the fault is taken back; Status names it and keeps the key_id, however long it lasts.
    async fn coast(&self, class: &str, fault: Fault) -> FaultId {
        let away = self.node.faults().add("", fault);
        let kept = |status: &StatusResponse| assert_eq!(status.key_id, self.key_id, "{class}: {}", status.healthz);
        status_until(&self.client, class, |status| {
            kept(status);
            status.healthz == class
        })
        .await;
        let began = Instant::now();
        while began.elapsed() < WATCHED {
            let status = self.client.status().await.expect("Status always answers");
            kept(&status);
            assert_ne!(status.healthz, "ok", "nobody has come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        away
    }

    /// Begins it; the rule of the node that plays it, if one does.
    async fn make(&self, trouble: Trouble) -> Option<FaultId> {
        let lasting = |body: String| Some(self.node.faults().add(KEY, Fault::Reply { status: 200, body }));
        match trouble {
            Trouble::SoftDeleted => {
                admin(&self.stage, "DELETE", &format!("{KEY}/soft-delete"), &Value::Null).await;
                None
            }
            Trouble::PolicyTaken => {
                self.put_policy("path \"x\" { capabilities = [\"read\"] }").await;
                None
            }
            Trouble::RolledBack => lasting(self.old.clone()),
            Trouble::Recreated => {
                let text = admin(&self.stage, "GET", KEY, &Value::Null).await;
                let mut other: Value = serde_json::from_str(&text).expect("JSON");
                let made = other["data"]["keys"]["2"].as_u64().expect("a time");
                other["data"]["keys"]["2"] = json!(made + 60);
                lasting(other.to_string())
            }
        }
    }

    /// Waits until Status names the trouble. Nothing else takes the key_id away, and nothing leaves it beside the trouble.
    async fn stops(&self, trouble: Trouble, meanwhile: impl Fn(&StatusResponse)) {
        let what = format!("{} for {trouble:?}", trouble.class());
        status_until(&self.client, &what, |status| {
            let named = status.healthz == trouble.class();
            if named {
                assert_eq!(status.key_id, "", "{trouble:?}");
            } else {
                assert_eq!(status.key_id, self.key_id, "{trouble:?}: {}", status.healthz);
                meanwhile(status);
            }
            named
        })
        .await;
    }

    async fn mend(&self, trouble: Trouble) {
        match trouble {
            Trouble::SoftDeleted => {
                admin(&self.stage, "POST", &format!("{KEY}/soft-delete-restore"), &json!({})).await;
            }
            Trouble::PolicyTaken => self.put_policy(&self.stage.setup.policy_text()).await,
            Trouble::RolledBack | Trouble::Recreated => self.node.faults().clear(),
        }
    }

    /// All is well again, with the key_id as before.
    async fn heals(&self, what: &str) {
        let status = status_until(&self.client, &format!("ok after {what}"), |status| status.healthz == "ok").await;
        assert_eq!(status.key_id, self.key_id, "after {what}");
        round(&self.client, &[7; 32]).await.unwrap_or_else(|error| panic!("after {what}: {error}"));
    }

    async fn put_policy(&self, text: &str) {
        admin(&self.stage, "POST", "sys/policies/acl/kms", &json!({ "policy": text })).await;
    }
}

/// What the administrator is answered.
async fn admin(stage: &Stage, method: &str, path: &str, body: &Value) -> String {
    let answer = stage.bao().call(method, path, body).await.expect("asked");
    assert!(answer.is_ok(), "{method} {path}: {} {}", answer.status, answer.text);
    answer.text
}

fn sealed() -> Fault {
    Fault::Reply { status: 503, body: "{\"errors\":[\"Vault is sealed\"]}\n".into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absence_beyond_the_tolerance_is_named_and_leaves_the_key_id() {
    let scene = Scene::set().await;
    for (class, fault) in [("sealed", sealed()), ("connection_lost", Fault::Reset), ("timeout", Fault::Hang)] {
        let away = scene.coast(class, fault).await;
        scene.node.faults().remove(away);
        scene.heals(class).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_the_key_takes_the_key_id_away_at_once_while_absence_would_not() {
    let scene = Scene::set().await;
    for trouble in TROUBLES {
        scene.make(trouble).await;
        scene.stops(trouble, |_| ()).await;
        scene.mend(trouble).await;
        scene.heals(&format!("{trouble:?}")).await;
    }
}

/// A backup that was restored while OpenBao was down, as an example: what comes back is not what went.
#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_the_key_that_is_found_on_the_return_from_an_absence_takes_the_key_id_away() {
    let scene = Scene::set().await;
    for trouble in TROUBLES {
        let away = scene.coast("sealed", sealed()).await;
        scene.make(trouble).await;
        scene.node.faults().remove(away);
        let well = |status: &StatusResponse| assert_ne!(status.healthz, "ok", "{trouble:?}: nothing was proved yet");
        scene.stops(trouble, well).await;
        scene.mend(trouble).await;
        scene.heals(&format!("{trouble:?} on the return from an absence")).await;
    }
}

/// What was wrong before OpenBao went away is still wrong while it is: only a success would say otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn an_absence_after_trouble_with_the_key_is_named_and_gives_no_key_id_back() {
    let scene = Scene::set().await;
    for trouble in TROUBLES {
        let played = scene.make(trouble).await;
        scene.stops(trouble, |_| ()).await;
        let away = scene.node.faults().add("", Fault::Reset);
        // The older rule acts where both match: with it gone the node answers nothing at all.
        played.into_iter().for_each(|rule| scene.node.faults().remove(rule));
        status_until(&scene.client, "absent", |status| {
            assert_eq!(status.key_id, "", "{trouble:?}: {}", status.healthz);
            status.healthz == "connection_lost"
        })
        .await;
        // For longer than the tolerance, so that what is shown is neither tolerated nor coasted through.
        let began = Instant::now();
        while began.elapsed() < WATCHED {
            let status = scene.client.status().await.expect("Status always answers");
            assert_eq!((status.healthz.as_str(), status.key_id.as_str()), ("connection_lost", ""), "{trouble:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        scene.mend(trouble).await;
        scene.node.faults().remove(away);
        scene.heals(&format!("{trouble:?} and then an absence")).await;
    }
}

/// What stands before OpenBao answers in its place, logins included: no right is lost, nobody has said so.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_a_proxy_is_absence_and_no_refusal() {
    let scene = Scene::set().await;
    for (status, body) in [(404, "<html>not found</html>"), (403, "{\"message\":\"blocked\"}"), (401, "")] {
        // The token has ended meanwhile.
        scene.stage.server.state().revoke_all_tokens();
        let away = scene.coast("bad_reply", Fault::Reply { status, body: body.to_owned() }).await;
        scene.node.faults().remove(away);
        let back = status_until(&scene.client, "ok", |status| status.healthz == "ok").await;
        assert_eq!(back.key_id, scene.key_id);
    }
}
