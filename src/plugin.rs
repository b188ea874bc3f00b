//! What a plugin is: a row of a room's table. Loader, schema, `config explain`, the generated docs and `plugins list`
//! read these rows; nothing else names a plugin.

/// One row: a login method, a layer, a backend or an exporter that an operator can name in the configuration file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plugin {
    /// The kind of plugin, which is also its place in the file: `auth`, `layers`, `backend`, `telemetry`.
    pub room: &'static str,
    /// The key that the operator writes.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub summary: &'static str,
    /// For a layer: why it stands where it stands. For others: when to choose it.
    pub why: &'static str,
}

/// Makes a choice between plugins out of a table: an enum that serde reads as a map with exactly one key, and the rows.
///
/// `plugin_choice! { /// docs  pub enum Config in "auth" as dyn Login { "jwt" => Jwt(jwt::Config): "summary", "why"; } }`
///
/// With `as`, every row's configuration offers that trait, and `chosen` is the one in use: so a new plugin is a line here.
#[macro_export]
macro_rules! plugin_choice {
    ($(#[$meta:meta])* $vis:vis enum $name:ident in $room:literal as $offer:ty {
        $($key:literal => $variant:ident($config:ty): $summary:literal, $why:literal;)+
    }) => {
        $crate::plugin_choice! {
            $(#[$meta])* $vis enum $name in $room {
                $($key => $variant($config): $summary, $why;)+
            }
        }

        impl $name {
            /// What the chosen plugin's configuration offers.
            pub fn chosen(&self) -> &$offer {
                match self {
                    $(Self::$variant(config) => config,)+
                }
            }
        }
    };
    ($(#[$meta:meta])* $vis:vis enum $name:ident in $room:literal {
        $($key:literal => $variant:ident($config:ty): $summary:literal, $why:literal;)+
    }) => {
        #[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
        $(#[$meta])*
        $vis enum $name {
            $(#[doc = $summary] #[serde(rename = $key)] $variant($config),)+
        }

        impl $name {
            /// The rows of this table, in the order in which they are documented.
            pub const TABLE: &'static [$crate::plugin::Plugin] = &[
                $($crate::plugin::Plugin { room: $room, name: $key, summary: $summary, why: $why },)+
            ];

            /// The key under which the chosen plugin stands in the file.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $key,)+
                }
            }
        }
    };
}
