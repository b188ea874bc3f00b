//! Login by JWT and by client certificate: roles, every refusal, what a login gives, renewal.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::super::jwt::{SignError, Signer};
use super::row::{Row, Who, row};
use super::run::escaped;
use super::tokens::auth;

/// The JWTs that the rows name, as `jwt.<name>`, and the public keys.
pub(super) fn values(elliptic: &Signer, rsa: &Signer) -> Result<BTreeMap<String, String>, SignError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let base = json!({ "iss": "issuer", "aud": "bao", "sub": "me", "iat": now - 10, "exp": now + 300 });
    let with = |name: &str, value: Value| {
        let mut claims = base.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = base.clone();
        claims.as_object_mut().map(|claims| claims.remove(name));
        claims
    };
    let claims = [
        ("good", base.clone()),
        ("issuer", with("iss", "other".into())),
        ("audience", with("aud", "other".into())),
        ("audiences", with("aud", json!(["other", "bao"]))),
        ("no-audience", without("aud")),
        ("no-subject", without("sub")),
        ("expired", with("exp", (now - 1000).into())),
        ("just-expired", with("exp", (now - 30).into())),
        ("early", with("nbf", (now + 1000).into())),
        (
            "future",
            json!({ "iss": "issuer", "aud": "bao", "sub": "me", "nbf": now, "iat": now + 1000, "exp": now + 3000 }),
        ),
        ("timeless", json!({ "iss": "issuer", "aud": "bao", "sub": "me" })),
        ("end-alone", json!({ "iss": "issuer", "aud": "bao", "sub": "me", "exp": now + 100 })),
        ("far-end-alone", json!({ "iss": "issuer", "aud": "bao", "sub": "me", "exp": now + 300 })),
        ("old", json!({ "iss": "issuer", "aud": "bao", "sub": "me", "iat": now - 1000 })),
        ("claim", json!({ "iss": "issuer", "sub": "me", "iat": now, "team": "a", "exp": now + 300 })),
        ("other-claim", json!({ "iss": "issuer", "sub": "me", "iat": now, "team": "b", "exp": now + 300 })),
        ("no-claim", json!({ "iss": "issuer", "sub": "me", "iat": now, "exp": now + 300 })),
        ("other-subject", json!({ "iss": "issuer", "sub": "you", "iat": now, "team": "a", "exp": now + 300 })),
    ];
    let mut values = BTreeMap::new();
    for (name, claims) in claims {
        values.insert(format!("jwt.{name}"), elliptic.sign(&claims)?);
    }
    let good = &values["jwt.good"];
    let flipped = if good.ends_with("AAAA") { "BBBA" } else { "AAAA" };
    let forged = format!("{}{flipped}", &good[..good.len() - 4]);
    values.insert("jwt.forged".into(), forged);
    values.insert("jwt.rsa".into(), rsa.sign(&base)?);
    values.insert("jwt.key".into(), escaped(elliptic.public_key_pem().trim()));
    values.insert("jwt.rsa-key".into(), escaped(rsa.public_key_pem().trim()));
    Ok(values)
}

pub(super) fn rows() -> Vec<Row> {
    [jwt_set_up(), jwt_logins(), cert()].concat()
}

fn login(name: &'static str, role: &str, jwt: &str) -> Row {
    row(name, "POST", "auth/cj/login", &format!(r#"{{"role":"{role}","jwt":"${{jwt.{jwt}}}"}}"#)).anonymous()
}

fn jwt_set_up() -> Vec<Row> {
    vec![
        row("mount jwt", "POST", "sys/auth/cj", r#"{"type":"jwt"}"#).empty(),
        row("mount jwt again", "POST", "sys/auth/cj", r#"{"type":"jwt"}"#).bad("path is already in use at cj/"),
        login("login before configuration", "r", "good").bad("could not load configuration"),
        row("configure nothing at all", "POST", "auth/cj/config", "{}")
            .bad("exactly one of 'jwt_validation_pubkeys', 'jwks_url' or 'oidc_discovery_url' must be set"),
        row("configure a bad key", "POST", "auth/cj/config", r#"{"jwt_validation_pubkeys":["x"]}"#)
            .bad("error parsing public key: data does not contain any valid public keys"),
        row("configure keys", "POST", "auth/cj/config", r#"{"jwt_validation_pubkeys":["${jwt.key}","${jwt.rsa-key}"],"bound_issuer":"issuer"}"#)
            .empty(),
        row("read the configuration", "GET", "auth/cj/config", "").data(
            r#"{"bound_issuer":"issuer","default_role":"","jwks_ca_pem":"","jwks_url":"","jwt_supported_algs":[],"jwt_validation_pubkeys":["${jwt.key}","${jwt.rsa-key}"],"namespace_in_state":true,"oidc_client_id":"","oidc_discovery_ca_pem":"","oidc_discovery_url":"","oidc_response_mode":"","oidc_response_types":[],"override_allowed_server_names":[],"provider_config":{},"status":"valid"}"#,
        ),
        row("list roles: none", "LIST", "auth/cj/role", "").blank(404),
        row("role that binds nothing", "POST", "auth/cj/role/r", r#"{"role_type":"jwt","user_claim":"sub"}"#)
            .bad("must have at least one bound constraint when creating/updating a role"),
        row("role without a user claim", "POST", "auth/cj/role/r", r#"{"role_type":"jwt","bound_audiences":["bao"]}"#)
            .bad("a user claim must be defined on the role"),
        row("role", "POST", "auth/cj/role/r", r#"{"role_type":"jwt","user_claim":"sub","bound_audiences":["bao"],"token_policies":["limited"],"token_ttl":"1h","token_max_ttl":"2h"}"#)
            .empty(),
        row("role by claims", "POST", "auth/cj/role/c", r#"{"role_type":"jwt","user_claim":"sub","bound_subject":"me","bound_claims":{"team":"a"}}"#)
            .empty(),
        row("list roles", "LIST", "auth/cj/role", "").data(r#"{"keys":["c","r"]}"#),
        row("read a role", "GET", "auth/cj/role/r", "").data(
            r#"{"allowed_redirect_uris":null,"bound_audiences":["bao"],"bound_claims":null,"bound_claims_type":"string","bound_subject":"","callback_mode":"client","claim_mappings":null,"clock_skew_leeway":0,"expiration_leeway":0,"groups_claim":"","max_age":0,"not_before_leeway":0,"oauth2_metadata":null,"oidc_scopes":null,"role_type":"jwt","token_bound_cidrs":[],"token_explicit_max_ttl":0,"token_max_ttl":7200,"token_no_default_policy":false,"token_num_uses":0,"token_period":0,"token_policies":["limited"],"token_policies_template_claims":false,"token_strictly_bind_ip":false,"token_ttl":3600,"token_type":"default","user_claim":"sub","user_claim_json_pointer":false,"verbose_oidc_logging":false}"#,
        ),
        row("read a missing role", "GET", "auth/cj/role/none", "").blank(404),
    ]
}

fn jwt_logins() -> Vec<Row> {
    let renewed = |lease| auth(r#""default","limited""#, r#"{"role":"r"}"#, lease, true, true, "null");
    let invalid = |why: &str| format!("error validating token: {why}");
    let audience = invalid("invalid audience (aud) claim: audience claim does not match any expected audience");
    let expired = invalid("invalid expiration time (exp) claim: token is expired");
    vec![
        login("login", "r", "good").want(renewed(3600)).keep("j", "/auth/client_token"),
        login("role in capitals", "R", "good").want(renewed(3600)),
        login("login with RSA", "r", "rsa").want(renewed(3600)),
        login("one audience of two", "r", "audiences").want(renewed(3600)),
        login("expired, within the leeway", "r", "just-expired").want(renewed(3600)),
        row("look up after login", "GET", "auth/token/lookup-self", "").by(Who::Token("${j}")).data(
            r#"{"accessor":"§","creation_time":§,"creation_ttl":3600,"display_name":"cj-me","entity_id":"§","expire_time":"§","explicit_max_ttl":0,"id":"${j}","issue_time":"§","meta":{"role":"r"},"num_uses":0,"orphan":true,"path":"auth/cj/login","policies":["default","limited"],"renewable":true,"ttl":§,"type":"service"}"#,
        ),
        row("renew after login", "POST", "auth/token/renew-self", "{}").by(Who::Token("${j}")).want(renewed(3600)),
        row("the token works", "POST", "ct/encrypt/k", r#"{"plaintext":"AAAA"}"#)
            .by(Who::Token("${j}"))
            .data(r#"{"ciphertext":"vault:v1:§","key_version":1}"#),
        row("login without a role", "POST", "auth/cj/login", r#"{"jwt":"x"}"#).anonymous().bad("missing role"),
        row("login with nothing", "POST", "auth/cj/login", "{}").anonymous().bad("missing role"),
        row("login without a JWT", "POST", "auth/cj/login", r#"{"role":"r"}"#).anonymous().bad("missing token"),
        login("unknown role", "none", "good").bad(r#"role \"none\" could not be found"#),
        login("forged", "r", "forged").bad(&invalid(
            "error verifying token signature: no known key successfully validated the token signature",
        )),
        row("one part", "POST", "auth/cj/login", r#"{"role":"r","jwt":"abc"}"#).anonymous().bad(&invalid(
            "error verifying token signature: go-jose/go-jose: compact JWS format must have three parts",
        )),
        row("three parts that are none", "POST", "auth/cj/login", r#"{"role":"r","jwt":"a.b.c"}"#)
            .anonymous()
            .bad(&invalid("error verifying token signature: illegal base64 data at input byte 0")),
        login("wrong issuer", "r", "issuer").bad(&invalid("invalid issuer (iss) claim")),
        login("wrong audience", "r", "audience").bad(&audience),
        login("no audience", "r", "no-audience").bad(&audience),
        login("no subject", "r", "no-subject").bad(r#"claim \"sub\" not found in token"#),
        login("an end alone", "r", "end-alone").want(renewed(3600)),
        login("an end alone that is far", "r", "far-end-alone")
            .bad(&invalid("invalid not before (nbf) claim: token not yet valid")),
        login("expired", "r", "expired").bad(&expired),
        login("no end and an old start", "r", "old").bad(&expired),
        login("not yet valid", "r", "early").bad(&invalid("invalid not before (nbf) claim: token not yet valid")),
        login("from the future", "r", "future").bad(&invalid("invalid issued at (iat) claim: token issued in the future")),
        login("no times at all", "r", "timeless").bad(&invalid(
            "no issued at (iat), not before (nbf), or expiration time (exp) claims in token",
        )),
        login("login by claims", "c", "claim").want(auth(r#""default""#, r#"{"role":"c"}"#, 2_764_800, true, true, "null")),
        login("wrong claim", "c", "other-claim")
            .bad(r#"error validating claims: claim \"team\" does not match any associated bound claim values"#),
        login("missing claim", "c", "no-claim").bad(r#"error validating claims: claim \"team\" is missing"#),
        login("wrong subject", "c", "other-subject").bad(&invalid("invalid subject (sub) claim")),
        login("audience that is not bound", "c", "good")
            .bad("audience claim found in JWT but no audiences bound to the role"),
    ]
}

fn cert() -> Vec<Row> {
    let login = |name, body: &str| row(name, "POST", "auth/cc/login", body);
    let by = Who::Certificate;
    let metadata =
        r#"{"authority_key_id":"§","cert_name":"kms","common_name":"kms","serial_number":"§","subject_key_id":"§"}"#;
    let given = |lease| auth(r#""default","limited""#, metadata, lease, true, true, "null");
    let no_chain = "invalid certificate or no client certificate supplied; additionally got errors during verification: \\u003cnil\\u003e";
    let constraint = "no chain matching all constraints could be found for this login certificate";
    let renew = |name| row(name, "POST", "auth/token/renew-self", "{}");
    vec![
        row("mount cert", "POST", "sys/auth/cc", r#"{"type":"cert"}"#).empty(),
        row("role without certificate", "POST", "auth/cc/certs/bad", "{}").bad("failed to parse certificate"),
        row("role with a bad certificate", "POST", "auth/cc/certs/bad", r#"{"certificate":"x"}"#)
            .bad("failed to parse certificate"),
        row("certificate role", "POST", "auth/cc/certs/kms", r#"{"certificate":"${client.ca}","allowed_common_names":["kms"],"token_policies":["limited"],"token_ttl":"1h","token_max_ttl":"2h"}"#)
            .empty(),
        row("read the certificate role", "GET", "auth/cc/certs/kms", "").data(
            r#"{"allowed_common_names":["kms"],"allowed_dns_sans":null,"allowed_email_sans":null,"allowed_metadata_extensions":null,"allowed_names":null,"allowed_organizational_units":null,"allowed_uri_sans":null,"certificate":"${client.ca}","display_name":"kms","ocsp_ca_certificates":"","ocsp_enabled":false,"ocsp_fail_open":false,"ocsp_query_all_servers":false,"ocsp_servers_override":null,"required_extensions":null,"token_bound_cidrs":[],"token_explicit_max_ttl":0,"token_max_ttl":7200,"token_no_default_policy":false,"token_num_uses":0,"token_period":0,"token_policies":["limited"],"token_strictly_bind_ip":false,"token_ttl":3600,"token_type":"default"}"#,
        ),
        row("read a missing certificate role", "GET", "auth/cc/certs/none", "").blank(404),
        login("login without certificate", "{}").anonymous().bad("client certificate must be supplied"),
        login("login with certificate", "{}").by(by("good")).want(given(3600)).keep("x", "/auth/client_token"),
        login("login with certificate and name", r#"{"name":"kms"}"#).by(by("good")).want(given(3600)),
        login("login with certificate and no body", "").by(by("good")).want(given(3600)),
        login("another name", r#"{"name":"none"}"#).by(by("good")).bad(no_chain),
        login("another common name", "{}").by(by("other")).bad(constraint),
        login("another authority", "{}").by(by("foreign")).bad(no_chain),
        renew("renew without the certificate").by(Who::Token("${x}")).bad("client certificate must be supplied"),
        renew("renew with another certificate").by(Who::TokenAndCertificate("${x}", "other")).bad(constraint),
        renew("renew with the certificate").by(Who::TokenAndCertificate("${x}", "good")).want(given(3600)),
    ]
}
