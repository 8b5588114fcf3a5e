//! Compiles the protos without a system protoc.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=volley");
    let files = protox::compile(["volley/v1/scheduler.proto", "volley/v1/worker.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
