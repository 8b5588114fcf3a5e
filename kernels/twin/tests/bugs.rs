//! The twin finds what it is there to find: each small kernel of `bugs/` is right, and each mistake planted in it shows.

#![allow(unsafe_code, clippy::unwrap_used)] // launches kernels that are wrong on purpose; shared parts

use std::{env, process::Command, sync::Arc};

use half::bf16;
use volley_kernels::cuda::{Address, Argument, Device, ElementType, Launch, Memory, Pinned, Tile};
use volley_twin::{Order, Schedule, Twin};

/// What a kernel made of its inputs, or what the twin said of it.
type Outcome = Result<Vec<f32>, String>;

fn launch(
    device: &Arc<dyn Device>,
    kernel: String,
    block: u32,
    shared: usize,
    arguments: &[Argument],
) -> Result<(), String> {
    let launch = Launch { kernel: kernel.leak(), grid: [1, 1, 1], block: [block, 1, 1], shared, arguments };
    // SAFETY: the arguments are the kernel's; what its bugs do is what the twin is asked to find.
    unsafe { device.launch(&launch) }.and_then(|()| device.synchronize()).map_err(|error| error.to_string())
}

/// A kernel that takes `in` and `out`, with `len` numbers 1, 2, … in.
fn simple(name: &str, bug: u32, shared: usize, len: usize, schedule: Schedule) -> Outcome {
    let device = Twin::device(schedule);
    let numbers: Vec<f32> = (1..=len).map(|i| i as f32).collect();
    let input = Memory::from_slice(&device, &numbers).unwrap();
    let mut out = Memory::<f32>::new(&device, if name == "copy" { 128 } else { len }).unwrap();
    launch(
        &device,
        format!("bug_{name}_{bug}"),
        128,
        shared,
        &[input.view().into(), (&out.view_mut()).into()],
    )?;
    Ok(out.read().unwrap())
}

/// Inputs of a product of tiles.
const K: usize = 384;

/// A matrix of 64 rows, in boxes of 64 × 64.
fn map(matrix: &Memory<bf16>) -> Argument {
    let tile = Tile {
        base: matrix.view().address(),
        element: ElementType::Bf16,
        rows: 64,
        columns: K,
        pitch: 2 * K,
        box_rows: 64,
        box_columns: 64,
        swizzle: 128,
    };
    matrix.device().tensor_map(&tile).unwrap().into()
}

fn tile(bug: u32, schedule: Schedule) -> Outcome {
    let device = Twin::device(schedule);
    let (a, b) = (tile_input(7), tile_input(11));
    let (a, b) = (Memory::from_slice(&device, &a).unwrap(), Memory::from_slice(&device, &b).unwrap());
    let mut c = Memory::<f32>::new(&device, 64 * 64).unwrap();
    let arguments = [map(&a), map(&b), (&c.view_mut()).into(), (K as i32).into()];
    launch(&device, format!("bug_tile_{bug}"), 160, 2 * 16384 + 32, &arguments)?;
    Ok(c.read().unwrap())
}

/// Small integers, whose sums are exact in any order.
fn tile_input(step: usize) -> Vec<bf16> {
    (0..64 * K).map(|i| bf16::from_f64((i * step % 13) as f64 - 6.0)).collect()
}

/// Over the first `k` inputs.
fn tile_product(k: usize) -> Vec<f32> {
    let (a, b) = (tile_input(7), tile_input(11));
    let dot = |i: usize, j: usize| (0..k).map(|k| a[i * K + k].to_f32() * b[j * K + k].to_f32()).sum();
    (0..64 * 64).map(|i| dot(i / 64, i % 64)).collect()
}

/// Over 64 inputs, with one factor in registers.
fn fragment(bug: u32, schedule: Schedule) -> Outcome {
    let device = Twin::device(schedule);
    let (a, b) = (tile_input(7), Memory::from_slice(&device, &tile_input(11)).unwrap());
    let word = |i: usize| {
        let (step, thread, register) = (i / 512, i / 4 % 128, i % 4);
        let row = thread / 32 * 16 + thread / 4 % 8 + register % 2 * 8;
        let at = row * K + step * 16 + thread % 4 * 2 + register / 2 * 8;
        u32::from(a[at].to_bits()) | u32::from(a[at + 1].to_bits()) << 16
    };
    let a = Memory::from_slice(&device, &(0..4 * 512).map(word).collect::<Vec<_>>()).unwrap();
    let mut c = Memory::<f32>::new(&device, 64 * 64).unwrap();
    let arguments = [a.view().into(), map(&b), (&c.view_mut()).into()];
    launch(&device, format!("bug_fragment_{bug}"), 128, 8192 + 8, &arguments)?;
    Ok(c.read().unwrap())
}

/// From one array to another, and back by a dependent launch.
fn dependent(bug: u32, schedule: Schedule) -> Outcome {
    let device = Twin::device(schedule);
    let numbers: Vec<f32> = (1..=128).map(|i| i as f32).collect();
    let mut x = Memory::from_slice(&device, &numbers).unwrap();
    let mut y = Memory::<f32>::filled(&device, 128, 0).unwrap();
    let kernel: &str = format!("bug_dependent_{bug}").leak();
    let there = [x.view().into(), (&y.view_mut()).into()];
    let back = [y.view().into(), (&x.view_mut()).into()];
    let launch = |arguments| Launch { kernel, grid: [1; 3], block: [128, 1, 1], shared: 0, arguments };
    // SAFETY: the arguments are the kernel's, and both arrays still exist when they are read.
    unsafe {
        device.launch(&launch(&there)).unwrap();
        device.launch_dependent(&launch(&back)).unwrap();
    }
    x.read().map_err(|error| error.to_string())
}

/// Variant 0 is right under every schedule, each other one wrong under at least one.
fn only_the_right_one_passes(expected: &[f32], bugs: u32, run: impl Fn(u32, Schedule) -> Outcome) {
    for schedule in Schedule::ALL {
        assert_eq!(run(0, schedule).as_deref(), Ok(expected), "{schedule:?}");
    }
    for bug in 1..=bugs {
        let found = Schedule::ALL.iter().any(|&schedule| run(bug, schedule).as_deref() != Ok(expected));
        assert!(found, "bug {bug} passes under every schedule");
    }
}

#[test]
fn a_missing_barrier_is_found() {
    let expected: Vec<f32> = (1..=512).rev().map(|i| i as f32).collect();
    only_the_right_one_passes(&expected, 3, |bug, schedule| simple("barrier", bug, 512, 512, schedule));
}

#[test]
fn a_missing_wait_within_a_warp_is_found() {
    let expected: Vec<f32> = (1..=128).map(|i| i as f32).collect();
    only_the_right_one_passes(&expected, 4, |bug, schedule| simple("warp", bug, 0, 128, schedule));
}

#[test]
fn a_missing_wait_for_cp_async_is_found() {
    let expected: Vec<f32> = (0..128).map(|t| (0..8).map(|i| (i * 128 + 128 - t) as f32).sum()).collect();
    only_the_right_one_passes(&expected, 4, |bug, schedule| simple("copy", bug, 3 * 512, 1024, schedule));
}

#[test]
fn a_missing_wait_for_an_mbarrier_or_wgmma_is_found() {
    only_the_right_one_passes(&tile_product(K), 6, tile);
    only_the_right_one_passes(&tile_product(64), 2, fragment);
}

#[test]
fn a_missing_wait_for_the_launch_before_is_found() {
    let expected: Vec<f32> = (1..=128).map(|i| (i + 2) as f32).collect();
    only_the_right_one_passes(&expected, 3, dependent);
}

#[test]
fn a_barrier_that_not_all_reach_is_named() {
    let error = simple("barrier", 3, 512, 512, Schedule::ALL[0]).unwrap_err();
    assert!(error.contains("kernel bug_barrier_3, block (0, 0, 0)"), "{error}");
    let error = simple("warp", 2, 0, 128, Schedule::ALL[0]).unwrap_err();
    assert!(error.contains("every thread waits"), "{error}");
    let error = simple("warp", 3, 0, 128, Schedule::ALL[0]).unwrap_err();
    assert!(error.contains("a shuffle reads a lane that takes no part"), "{error}");
}

/// Runs a test of this file again in a process of its own, as `bug`; gives what it wrote when it died.
fn in_a_process(test: &str, bug: u32) -> String {
    let program = env::current_exe().unwrap();
    let output = Command::new(program)
        .args(["--exact", test, "--nocapture"])
        .env("TWIN_PLANTED_BUG", bug.to_string())
        .output()
        .unwrap();
    assert!(!output.status.success(), "bug {bug} went unnoticed");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_access_out_of_bounds_names_the_thread() {
    let run = |bug| simple("bounds", bug, 512, 128, Schedule { order: Order::Forward, early: false });
    if let Ok(bug) = env::var("TWIN_PLANTED_BUG") {
        run(bug.parse().unwrap()).unwrap();
        return;
    }
    assert_eq!(run(0).unwrap().len(), 128);
    let found = [
        (1, "kernel bug_bounds_1, block (0, 0, 0), thread (127, 0, 0)"),
        (1, "offset 512 of an allocation of 512 bytes"),
        (2, "bytes before an allocation of 512 bytes"),
        (3, "written past the end of shared memory"),
        (4, "past the end of 512 bytes of shared memory"),
        (5, "a kernel wrote just outside an allocation"),
        (6, "its stack is full"),
    ];
    for (bug, message) in found {
        let said = in_a_process("an_access_out_of_bounds_names_the_thread", bug);
        assert!(said.contains(message), "bug {bug}: {said}");
    }
}

#[test]
fn arguments_of_the_wrong_type_are_refused() {
    let device = Twin::device(Schedule::ALL[0]);
    let error =
        launch(&device, "bug_barrier_0".into(), 128, 512, &[Address(0).into(), 3.into()]).unwrap_err();
    assert!(error.contains("takes arguments pp, not pi"), "{error}");
    let error = launch(&device, "no_such_kernel".into(), 128, 512, &[]).unwrap_err();
    assert!(error.contains("no_such_kernel"), "{error}");
}

#[test]
fn a_graph_runs_what_was_recorded() {
    let device = Twin::device(Schedule::ALL[0]);
    let numbers: Vec<f32> = (1..=512).map(|i| i as f32).collect();
    let input = Memory::from_slice(&device, &numbers).unwrap();
    let mut out = Memory::<f32>::filled(&device, 512, 0).unwrap();
    let arguments = [input.view().into(), (&out.view_mut()).into()];
    let record = &mut || {
        // SAFETY: as in `launch`.
        unsafe {
            device.launch(&Launch {
                kernel: "bug_barrier_0",
                grid: [1, 1, 1],
                block: [128, 1, 1],
                shared: 512,
                arguments: &arguments,
            })
        }
    };
    let graph = device.capture(record).unwrap();
    assert_eq!(out.read().unwrap(), vec![0.0; 512]);
    // SAFETY: both allocations still exist.
    unsafe { graph.launch() }.unwrap();
    assert_eq!(out.read().unwrap()[0], 512.0);
}

#[test]
fn copies_beside_the_work_see_what_comes_after_unless_that_waits_for_them() {
    for schedule in Schedule::ALL {
        let device = Twin::device(schedule);
        let numbers = |from: u32| (from..from + 64).collect::<Vec<u32>>();
        let (first, second) = (Memory::from_slice(&device, &numbers(0)), numbers(100));
        let (first, second) = (first.unwrap(), Memory::from_slice(&device, &second).unwrap());
        for waits in [false, true] {
            let mut memory = Memory::from_slice(&device, &[7u32; 64]).unwrap();
            let mut back = Pinned::new(&device, 256).unwrap();
            memory.copy_from(first.view()).unwrap();
            // SAFETY: both places are as long, and wait for the event before they go.
            let copied = unsafe { device.download(&mut back, memory.view().address()) }.unwrap();
            if waits {
                copied.hold().unwrap();
            }
            memory.copy_from(second.view()).unwrap();
            copied.wait().unwrap();
            let expected = if waits || schedule.early { 0u32 } else { 100 };
            assert_eq!(back[..4], expected.to_le_bytes(), "{schedule:?}");
        }
    }
}

#[test]
fn an_upload_sees_what_the_host_does_before_anybody_waits() {
    for schedule in Schedule::ALL {
        let device = Twin::device(schedule);
        let (memory, mut host) =
            (Memory::<u8>::filled(&device, 16, 1).unwrap(), Pinned::new(&device, 16).unwrap());
        // SAFETY: both are as long, and outlive the copy.
        unsafe { device.upload(memory.view().address(), &host) }.unwrap();
        let sent = device.mark().unwrap();
        host[0] = 9;
        sent.wait().unwrap();
        host[0] = 5;
        assert_eq!(memory.read().unwrap()[0], if schedule.early { 0 } else { 9 });
    }
}
