//! Tokens: create, look up, renew, revoke; lifetimes and the warnings when they are cut.

use std::time::Duration;

use super::row::{Row, Want, Who, row};

/// The reply to a token's making: the policies as JSON items, lifetime in seconds, whether it can be renewed, whether it has
/// no parent.
pub(super) fn created(policies: &str, lease: u64, renewable: bool, orphan: bool) -> Want {
    auth(policies, "null", lease, renewable, orphan, "null")
}

/// An `auth` block with everything that may differ.
pub(super) fn auth(policies: &str, metadata: &str, lease: u64, renewable: bool, orphan: bool, warnings: &str) -> Want {
    Want::Auth(
        format!(
            r#"{{"client_token":"s.§","accessor":"§","policies":[{policies}],"token_policies":[{policies}],"metadata":{metadata},"lease_duration":{lease},"renewable":{renewable},"entity_id":"§","token_type":"service","orphan":{orphan},"mfa_requirement":null,"num_uses":0}}"#
        ),
        warnings.to_owned(),
    )
}

fn capped(asked: &str, max: &str) -> String {
    format!(r#"["TTL of \"{asked}\" exceeded the effective max_ttl of \"{max}\"; TTL value is capped accordingly"]"#)
}

pub(super) fn rows() -> Vec<Row> {
    [lives(), kinds(), ends()].concat()
}

fn lives() -> Vec<Row> {
    let limited = r#""default","limited""#;
    let create = |name, body: &str| row(name, "POST", "auth/token/create", body);
    let renew =
        |name, who: &'static str, body: &str| row(name, "POST", "auth/token/renew-self", body).by(Who::Token(who));
    vec![
        create("token with a lifetime", r#"{"policies":["limited"],"ttl":"1h"}"#)
            .want(created(limited, 3600, true, false))
            .keep("t", "/auth/client_token"),
        renew("renew", "${t}", "{}").want(created(limited, 3600, true, false)),
        renew("renew without a body", "${t}", "").want(created(limited, 3600, true, false)),
        renew("renew for less", "${t}", r#"{"increment":"10s"}"#).want(created(limited, 10, true, false)),
        renew("renew for seconds", "${t}", r#"{"increment":7200}"#).want(created(limited, 7200, true, false)),
        renew("renewing by GET", "${t}", "").renamed("GET").multi(403, "permission denied"),
        row("look up", "GET", "auth/token/lookup-self", "").by(Who::Token("${t}")).data(
            r#"{"accessor":"§","creation_time":§,"creation_ttl":3600,"display_name":"token","entity_id":"","expire_time":"§","explicit_max_ttl":0,"id":"${t}","issue_time":"§","last_renewal":"§","last_renewal_time":§,"meta":null,"num_uses":0,"orphan":false,"path":"auth/token/create","policies":["default","limited"],"renewable":true,"ttl":§,"type":"service"}"#,
        ),
        create("token with a hard maximum", r#"{"policies":["limited"],"ttl":"1h","explicit_max_ttl":"2h"}"#)
            .want(created(limited, 3600, true, false))
            .keep("m", "/auth/client_token"),
        renew("renew beyond the maximum", "${m}", r#"{"increment":"50h"}"#)
            .want(Want::Auth(
                r#"{"client_token":"s.§","accessor":"§","policies":["default","limited"],"token_policies":["default","limited"],"metadata":null,"lease_duration":§,"renewable":true,"entity_id":"","token_type":"service","orphan":false,"mfa_requirement":null,"num_uses":0}"#.into(),
                r#"["TTL of \"50h\" exceeded the effective max_ttl of \"§\"; TTL value is capped accordingly"]"#.into(),
            )),
        create("token beyond the system's maximum", r#"{"policies":["limited"],"ttl":"9000h"}"#)
            .want(auth(limited, "null", 2_764_800, true, false, &capped("9000h", "768h"))),
        create("token without a lifetime", r#"{"policies":["limited"]}"#)
            .want(created(limited, 2_764_800, true, false)),
        create("token with a period", r#"{"policies":["limited"],"period":"1h"}"#)
            .want(created(limited, 3600, true, false))
            .keep("p", "/auth/client_token"),
        renew("a period does not grow", "${p}", r#"{"increment":"50h"}"#).want(created(limited, 3600, true, false)),
    ]
}

fn kinds() -> Vec<Row> {
    let limited = r#""default","limited""#;
    let create = |name, body: &str| row(name, "POST", "auth/token/create", body);
    let batch = || Who::Token("${b}");
    vec![
        create("token that cannot be renewed", r#"{"policies":["limited"],"ttl":"1h","renewable":false}"#)
            .want(created(limited, 3600, false, false))
            .keep("n", "/auth/client_token"),
        row("renew what cannot be", "POST", "auth/token/renew-self", "{}")
            .by(Who::Token("${n}"))
            .bad("lease is not renewable"),
        create("batch token", r#"{"policies":["limited"],"type":"batch","ttl":"1h"}"#)
            .want(Want::Auth(
                r#"{"client_token":"b.§","accessor":"","policies":["default","limited"],"token_policies":["default","limited"],"metadata":null,"lease_duration":3600,"renewable":false,"entity_id":"","token_type":"batch","orphan":false,"mfa_requirement":null,"num_uses":0}"#.into(),
                "null".into(),
            ))
            .keep("b", "/auth/client_token"),
        row("renew a batch token", "POST", "auth/token/renew-self", "{}").by(batch()).bad("batch tokens cannot be renewed"),
        row("revoke a batch token", "POST", "auth/token/revoke-self", "").by(batch()).bad("batch tokens cannot be revoked"),
        create("token without default", r#"{"no_parent":true,"policies":["limited"],"no_default_policy":true,"meta":{"a":"b"}}"#)
            .want(auth(r#""limited""#, r#"{"a":"b"}"#, 2_764_800, true, true, "null"))
            .keep("bare", "/auth/client_token"),
        row("without default: no renewal", "POST", "auth/token/renew-self", "{}")
            .by(Who::Token("${bare}"))
            .multi(403, "permission denied"),
        row("without default: no look-up", "GET", "auth/token/lookup-self", "")
            .by(Who::Token("${bare}"))
            .multi(403, "permission denied"),
        create("token of root", "{}").want(created(r#""root""#, 0, false, false)),
        create("token of a policy that is not there", r#"{"policies":["ghost"],"ttl":"1h"}"#).want(auth(
            r#""default","ghost""#,
            "null",
            3600,
            true,
            false,
            r#"["Policy \"ghost\" does not exist"]"#,
        )),
        create("token with a bad lifetime", r#"{"ttl":"x"}"#).bad(r#"time: invalid duration \"x\""#),
        row("renew root", "POST", "auth/token/renew-self", "{}").bad("lease is not renewable"),
        row("renew root by GET", "GET", "auth/token/renew-self", "").multi(405, "unsupported operation"),
    ]
}

fn ends() -> Vec<Row> {
    let limited = r#""default","limited""#;
    let gone = |row: Row| row.plain(403, "permission denied");
    let t = || Who::Token("${t}");
    let short = || Who::Token("${short}");
    vec![
        row("revoke", "POST", "auth/token/revoke-self", "").by(t()).empty(),
        gone(row("revoke again", "POST", "auth/token/revoke-self", "").by(t())),
        gone(row("look up what has ended", "GET", "auth/token/lookup-self", "").by(t())),
        gone(row("renew what has ended", "POST", "auth/token/renew-self", "{}").by(t())),
        row("revoke another", "POST", "auth/token/revoke", r#"{"token":"${m}"}"#).empty(),
        gone(row("the other has ended", "GET", "ct/keys/k", "").by(Who::Token("${m}"))),
        row("revoke nothing", "POST", "auth/token/revoke", "{}").bad("missing token ID"),
        row("token of a second", "POST", "auth/token/create", r#"{"policies":["limited"],"ttl":"1s"}"#)
            .want(created(limited, 1, true, false))
            .keep("short", "/auth/client_token"),
        gone(row("it has run out", "GET", "ct/keys/k", "").by(short()).after(Duration::from_millis(2200))),
        gone(row("too late to renew", "POST", "auth/token/renew-self", "{}").by(short())),
    ]
}
