//! The committed gRPC code is what the committed proto file makes.

use std::path::Path;

const COMMITTED: &str = "src/front/v2.rs";

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().expect("a folder");
    let descriptors = protox::compile(["kms/v2.proto"], [root.join("proto")]).expect("the proto file compiles");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .btree_map(".")
        .bytes(".v2.DecryptRequest.ciphertext")
        .bytes(".v2.EncryptResponse.ciphertext")
        .skip_debug(["."])
        .build_transport(false)
        .emit_package(true)
        .compile_fds(descriptors)
        .expect("code is made");
    let made = std::fs::read_to_string(out.path().join("v2.rs")).expect("v2.rs");
    let committed = root.join(COMMITTED);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&committed, &made).expect("written");
    }
    let known = std::fs::read_to_string(&committed).expect("the committed file");
    assert!(known == made, "{COMMITTED} is not what proto/kms/v2.proto makes; run the test once with BLESS=1");
}
