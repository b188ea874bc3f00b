//! What can be mounted, and where: secret engines at their path, login methods below `auth/`.

use serde_json::{Value, json};

use super::VERSION;
use super::login_cert::CertAuth;
use super::login_jwt::JwtAuth;
use super::reply::{random_text, uuid};
use super::transit::Transit;

/// One mount.
pub struct Mount {
    pub engine: Engine,
    pub kind: String,
    pub accessor: String,
    uuid: String,
    description: String,
}

/// What a mount does.
pub enum Engine {
    Transit(Transit),
    Jwt(JwtAuth),
    Cert(CertAuth),
}

impl Mount {
    /// A new mount of a secret engine, when the server has one of this name.
    pub fn secret(kind: &str, description: &str) -> Option<Mount> {
        let engine = match kind {
            "transit" => Engine::Transit(Transit::default()),
            _ => return None,
        };
        Some(Mount::of(engine, kind, format!("{kind}_"), description))
    }

    /// A new mount of a login method, when the server has one of this name.
    pub fn auth(kind: &str, description: &str) -> Option<Mount> {
        let engine = match kind {
            "jwt" => Engine::Jwt(JwtAuth::default()),
            "cert" => Engine::Cert(CertAuth::default()),
            _ => return None,
        };
        Some(Mount::of(engine, kind, format!("auth_{kind}_"), description))
    }

    fn of(engine: Engine, kind: &str, prefix: String, description: &str) -> Mount {
        Mount {
            engine,
            kind: kind.into(),
            accessor: format!("{prefix}{}", random_text(8).to_lowercase()),
            uuid: uuid(),
            description: description.into(),
        }
    }

    /// The mount as `sys/mounts/<path>` and `sys/auth/<path>` describe it.
    pub fn describe(&self) -> Value {
        let mut config = json!({ "default_lease_ttl": 0, "force_no_cache": false, "max_lease_ttl": 0 });
        if !matches!(self.engine, Engine::Transit(_)) {
            config["token_type"] = "default-service".into();
        }
        json!({
            "accessor": self.accessor,
            "config": config,
            "deprecation_status": "supported",
            "description": self.description,
            "external_entropy_access": false,
            "local": false,
            "options": {},
            "plugin_version": "",
            "running_plugin_version": format!("v{VERSION}+builtin.bao"),
            "running_sha256": "",
            "seal_wrap": false,
            "type": self.kind,
            "uuid": self.uuid,
        })
    }
}
