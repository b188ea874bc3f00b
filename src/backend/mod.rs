//! The vault room: what a backend is asked and what it answers.

pub mod transit;

crate::plugin_choice! {
    /// `backend`: what wraps the seeds; a map with exactly one key.
    #[schemars(rename = "Backend")]
    pub enum Config in "backend" {
        "transit" => Transit(transit::Config): "OpenBao's Transit engine over HTTPS.", "The only one there is: the key never leaves OpenBao.";
    }
}
