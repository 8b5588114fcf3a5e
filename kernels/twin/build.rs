//! Compiles the twin's runtime and every kernel of `kernels/cuda` for the CPU.
//!
//! A kernel file is compiled inside a namespace without a name, so that two files may call their parts alike; a table
//! names the files, which keeps the linker from dropping them.

use std::{
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

fn main() {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    let runtime = here.join("runtime");
    let cuda = here.join("../cuda");
    for folder in [&runtime, &cuda, &cuda.join("include"), &here.join("tests/bugs")] {
        println!("cargo:rerun-if-changed={}", folder.display());
    }

    let mut units = Vec::new();
    for source in files(&cuda, "cu") {
        units.push(unit(&out, &source, &stem(&source), ""));
    }
    // Small kernels, each right (variant 0) and with one bug planted (1, 2, …), for the tests of the twin itself.
    for source in files(&here.join("tests/bugs"), "cu") {
        let text = fs::read_to_string(&source).expect("a listed file");
        let last =
            text.split("BUG ").filter_map(|rest| rest.get(3..4)?.parse::<u32>().ok()).max().unwrap_or(0);
        for bug in 0..=last {
            units.push(unit(
                &out,
                &source,
                &format!("{}_{bug}", stem(&source)),
                &format!("#define BUG {bug}\n"),
            ));
        }
    }
    let table = table(&out, &units);

    let mut kernels = build(&[&runtime, &cuda.join("include")]);
    // Kernels are not compiled for speed here, and the compiler has opinions on pragmas for another one.
    kernels.opt_level(2).warnings(false).flag("-w").flag("-Wno-psabi");
    // A frame larger than the page that guards a thread's stack must not step over it.
    kernels.flag("-fstack-clash-protection").flag("--param=stack-clash-protection-guard-size=12");
    kernels.files(units.iter().map(|(_, path)| path)).file(table).compile("twin_kernels");
    build(&[&runtime]).opt_level(3).files(files(&runtime, "cpp")).compile("twin_runtime");
}

fn build(includes: &[&Path]) -> cc::Build {
    let mut build = cc::Build::new();
    // No fused multiply-add where the source has none: the same bits on every processor.
    build.cpp(true).std("c++17").flag("-ffp-contract=off").debug(false).includes(includes);
    build
}

/// A file to compile: its name, and where it lies.
type Unit = (String, PathBuf);

fn unit(out: &Path, source: &Path, name: &str, head: &str) -> Unit {
    let path = out.join(format!("{name}.cpp"));
    let text = format!(
        "{head}#include \"gpu90.cuh\"\nnamespace {{\n#include \"{}\"\n}}\nvoid twin_link_{name}() {{}}\n",
        source.display()
    );
    fs::write(&path, text).expect("the output folder can be written");
    (name.to_owned(), path)
}

fn table(out: &Path, units: &[Unit]) -> PathBuf {
    let mut text = String::from("#include \"twin.h\"\n");
    let mut calls = String::new();
    for (name, _) in units {
        writeln!(text, "void twin_link_{name}();").expect("a string");
        writeln!(calls, "  twin_link_{name}();").expect("a string");
    }
    writeln!(text, "namespace twin {{\nextern Entry* first_entry;\n}}").expect("a string");
    writeln!(
        text,
        "extern \"C\" const twin::Entry* twin_entries() {{\n{calls}  return twin::first_entry;\n}}"
    )
    .expect("a string");
    let path = out.join("table.cpp");
    fs::write(&path, text).expect("the output folder can be written");
    path
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    files
}

fn stem(path: &Path) -> String {
    path.file_stem().expect("a file").to_string_lossy().into_owned()
}
