//! Compiles the twin's runtime and every kernel of `kernels/cuda` for the CPU.
//!
//! A kernel file is compiled inside a namespace without a name, so that two files may call their parts alike; a table
//! names the files, which keeps the linker from dropping them.

use std::{
    env,
    fmt::Write,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
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
    units.push(("table".to_owned(), table));

    let mut kernels = build(&[&runtime, &cuda.join("include")]);
    // The compiler has opinions on pragmas that are meant for another one.
    kernels.opt_level(2).warnings(false).flag("-w").flag("-Wno-psabi");
    // A frame larger than the page that guards a thread's stack must not step over it.
    kernels.flag("-fstack-clash-protection").flag("--param=stack-clash-protection-guard-size=12");
    let headers: Vec<PathBuf> =
        [(&runtime, "h"), (&cuda.join("include"), "cuh"), (&here.join("tests/bugs"), "cuh")]
            .into_iter()
            .flat_map(|(folder, extension)| files(folder, extension))
            .collect();
    let objects = compile(&kernels, &units, fingerprint(&headers, &[here.join("build.rs")]));
    build(&[&runtime]).objects(objects).compile("twin_kernels");
    build(&[&runtime]).opt_level(3).files(files(&runtime, "cpp")).compile("twin_runtime");
}

/// Compiles the units that changed: all of them take a minute or two.
fn compile(kernels: &cc::Build, units: &[Unit], shared: u64) -> Vec<PathBuf> {
    let mut objects = Vec::new();
    let mut changed = kernels.clone();
    let mut stamps = Vec::new();
    for (_, path) in units {
        let stamp = path.with_extension("stamp");
        let text = fs::read_to_string(path).expect("just written");
        let sources: Vec<PathBuf> =
            text.split('"').map(PathBuf::from).filter(|path| path.is_absolute()).collect();
        let wanted = fingerprint(&sources, std::slice::from_ref(path)) ^ shared;
        let made = fs::read_to_string(&stamp).unwrap_or_default();
        match made.split_once(' ') {
            Some((hash, object)) if hash == wanted.to_string() && Path::new(object).exists() => {
                objects.push(PathBuf::from(object));
            }
            _ => {
                changed.file(path);
                stamps.push((stamp, wanted));
            }
        }
    }
    if !stamps.is_empty() {
        for (object, (stamp, hash)) in changed.compile_intermediates().into_iter().zip(stamps) {
            fs::write(stamp, format!("{hash} {}", object.display()))
                .expect("the output folder can be written");
            objects.push(object);
        }
    }
    objects
}

/// Of the files' contents.
fn fingerprint(some: &[PathBuf], more: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in some.iter().chain(more) {
        fs::read(path).unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
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
