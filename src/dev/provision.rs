//! Sets an OpenBao up for the plugin, through its HTTP API: Transit, a key, a least-privilege policy, login roles. It works
//! against the embedded server and against real OpenBao, and may be run again.

use serde_json::{Value, json};

use super::client::{Answer, Client, ClientError, Endpoint};

/// What to set up. Every name has a default that fits the examples.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The namespace, made when it is missing (each part of `a/b` in turn); root when empty.
    pub namespace: String,
    /// The Transit mount.
    pub mount: String,
    /// The key.
    pub key: String,
    /// The key's type.
    pub key_type: String,
    /// The policy.
    pub policy: String,
    /// Login by JWT, when wanted.
    pub jwt: Option<JwtLogin>,
    /// Login by client certificate, when wanted.
    pub cert: Option<CertLogin>,
    /// Lifetime of the tokens, such as `1h`.
    pub token_ttl: String,
    /// The longest lifetime that renewal reaches, such as `24h`.
    pub token_max_ttl: String,
}

/// Login by JWT.
#[derive(Debug, Clone)]
pub struct JwtLogin {
    /// The mount of the login method.
    pub mount: String,
    /// The role.
    pub role: String,
    /// The public key that JWTs are checked against, as PEM.
    pub public_key_pem: String,
    /// The issuer that JWTs must name.
    pub issuer: String,
    /// The audience that JWTs must name.
    pub audience: String,
    /// The subject that JWTs must name.
    pub subject: String,
}

/// Login by client certificate.
#[derive(Debug, Clone)]
pub struct CertLogin {
    /// The mount of the login method.
    pub mount: String,
    /// The role.
    pub role: String,
    /// The authority of client certificates, as PEM.
    pub ca_pem: String,
    /// The common name that certificates must carry.
    pub common_name: String,
}

/// Why the set-up stopped.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// No answer.
    #[error("{step}: {source}")]
    Call {
        /// What was being done.
        step: String,
        /// What went wrong.
        source: ClientError,
    },
    /// OpenBao said no.
    #[error("{step}: OpenBao answered {status}: {text}")]
    Refused {
        /// What was being done.
        step: String,
        /// The HTTP status.
        status: u16,
        /// OpenBao's words.
        text: String,
    },
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            namespace: String::new(),
            mount: "transit".into(),
            key: "k8s-etcd".into(),
            key_type: "aes256-gcm96".into(),
            policy: "kms".into(),
            jwt: None,
            cert: None,
            token_ttl: "1h".into(),
            token_max_ttl: "24h".into(),
        }
    }
}

impl JwtLogin {
    /// Login at `jwt`, role `kms`, for JWTs that this key signs, with an issuer, audience and subject for development.
    pub fn of(public_key_pem: &str) -> JwtLogin {
        JwtLogin {
            mount: "jwt".into(),
            role: "kms".into(),
            public_key_pem: public_key_pem.to_owned(),
            issuer: "https://issuer.example".into(),
            audience: "openbao".into(),
            subject: "bao-kms-provider".into(),
        }
    }
}

impl CertLogin {
    /// Login at `cert`, role `kms`, for certificates of this authority with the common name `bao-kms-provider`.
    pub fn of(ca_pem: &str) -> CertLogin {
        CertLogin {
            mount: "cert".into(),
            role: "kms".into(),
            ca_pem: ca_pem.to_owned(),
            common_name: "bao-kms-provider".into(),
        }
    }
}

impl Setup {
    /// The policy: encrypt and decrypt with this key, read it, and read whether upserts are off. What a token may do with
    /// itself (look up, renew, revoke, ask for capabilities) is spelled out, so that a role without `default` works too.
    pub fn policy_text(&self) -> String {
        let (mount, key) = (&self.mount, &self.key);
        format!(
            r#"path "{mount}/encrypt/{key}" {{ capabilities = ["update"] }}
path "{mount}/decrypt/{key}" {{ capabilities = ["update"] }}
path "{mount}/keys/{key}" {{ capabilities = ["read"] }}
path "{mount}/config/keys" {{ capabilities = ["read"] }}
path "auth/token/lookup-self" {{ capabilities = ["read"] }}
path "auth/token/renew-self" {{ capabilities = ["update"] }}
path "auth/token/revoke-self" {{ capabilities = ["update"] }}
path "sys/capabilities-self" {{ capabilities = ["update"] }}
"#
        )
    }
}

/// Sets `endpoint` up with its root token (or one that may do all this). What is there already stays.
///
/// # Errors
/// With the step that failed and OpenBao's words.
pub async fn provision(endpoint: &Endpoint, root_token: &str, setup: &Setup) -> Result<(), ProvisionError> {
    let root = Client::new(endpoint, root_token, None)
        .map_err(|source| ProvisionError::Call { step: "client".into(), source })?;
    let mut parent = String::new();
    for part in setup.namespace.split('/').filter(|part| !part.is_empty()) {
        let step = Steps { client: root.clone().in_namespace(&parent) };
        step.post(&format!("sys/namespaces/{part}"), &json!({})).await?;
        parent = if parent.is_empty() { part.to_owned() } else { format!("{parent}/{part}") };
    }
    let steps = Steps { client: root.in_namespace(&parent) };
    let (mount, key, policy) = (&setup.mount, &setup.key, &setup.policy);
    steps.mount(&format!("sys/mounts/{mount}"), "transit").await?;
    steps.post(&format!("{mount}/keys/{key}"), &json!({ "type": setup.key_type })).await?;
    steps.post(&format!("sys/policies/acl/{policy}"), &json!({ "policy": setup.policy_text() })).await?;
    if let Some(jwt) = &setup.jwt {
        steps.jwt(setup, jwt).await?;
    }
    if let Some(cert) = &setup.cert {
        steps.cert(setup, cert).await?;
    }
    Ok(())
}

struct Steps {
    client: Client,
}

impl Steps {
    async fn post(&self, path: &str, body: &Value) -> Result<Answer, ProvisionError> {
        let step = || path.to_owned();
        let answer = self
            .client
            .call("POST", path, body)
            .await
            .map_err(|source| ProvisionError::Call { step: step(), source })?;
        if answer.is_ok() {
            return Ok(answer);
        }
        Err(ProvisionError::Refused { step: step(), status: answer.status, text: answer.text.trim().to_owned() })
    }

    async fn mount(&self, path: &str, kind: &str) -> Result<(), ProvisionError> {
        match self.post(path, &json!({ "type": kind })).await {
            Err(ProvisionError::Refused { status: 400, text, .. }) if text.contains("path is already in use") => Ok(()),
            other => other.map(drop),
        }
    }

    async fn jwt(&self, setup: &Setup, jwt: &JwtLogin) -> Result<(), ProvisionError> {
        let mount = &jwt.mount;
        self.mount(&format!("sys/auth/{mount}"), "jwt").await?;
        let config = json!({ "jwt_validation_pubkeys": [jwt.public_key_pem], "bound_issuer": jwt.issuer });
        self.post(&format!("auth/{mount}/config"), &config).await?;
        let role = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": [jwt.audience], "bound_subject": jwt.subject,
            "token_policies": [setup.policy], "token_no_default_policy": true,
            "token_ttl": setup.token_ttl, "token_max_ttl": setup.token_max_ttl,
        });
        self.post(&format!("auth/{mount}/role/{}", jwt.role), &role).await.map(drop)
    }

    async fn cert(&self, setup: &Setup, cert: &CertLogin) -> Result<(), ProvisionError> {
        let mount = &cert.mount;
        self.mount(&format!("sys/auth/{mount}"), "cert").await?;
        let role = json!({
            "certificate": cert.ca_pem, "allowed_common_names": [cert.common_name],
            "token_policies": [setup.policy], "token_no_default_policy": true,
            "token_ttl": setup.token_ttl, "token_max_ttl": setup.token_max_ttl,
        });
        self.post(&format!("auth/{mount}/certs/{}", cert.role), &role).await.map(drop)
    }
}
