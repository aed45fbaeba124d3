//! The command line as a user meets it: help, and one sentence for each mistake.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn monitor(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_refverify-monitor");
    Command::new(program).args(arguments).env_remove("JOURNAL_STREAM").output().unwrap()
}

/// What a mistake leads to: nothing on stdout, status 1, one line on stderr.
fn mistake(arguments: &[&str]) -> String {
    let output = monitor(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said.strip_prefix("refverify-monitor: ").expect("the program's name first").trim().to_owned()
}

#[test]
fn help_explains_options_examples_and_exit_status() {
    let output = monitor(&["--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::write(&path, &help).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == help, "help differs from tests/golden/help.txt:\n{help}");
}

#[test]
fn each_option_of_the_help_is_in_the_readme() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    for argument in refverify_user::cli::command().get_arguments() {
        let Some(long) = argument.get_long() else { continue };
        if !["help", "version"].contains(&long) {
            assert!(readme.contains(&format!("`--{long}")), "README.md lacks --{long}");
        }
    }
}

#[test]
fn no_device_is_one_sentence() {
    assert_eq!(
        mistake(&[]),
        "the following required arguments were not provided: <DEVICE>...; \
         see refverify-monitor --help"
    );
}

#[test]
fn an_unknown_option_is_one_sentence() {
    let said = mistake(&["--frobnicate", "/dev/null"]);
    assert!(said.starts_with("unexpected argument '--frobnicate' found; see"), "{said}");
}

#[test]
fn a_ring_buffer_that_the_kernel_would_refuse_is_one_sentence() {
    for size in ["0", "3", "2048", "-1", "many", ""] {
        let said = mistake(&[&format!("--ring-mib={size}"), "/dev/null"]);
        assert!(said.contains("power of two from 1 to 1024"), "{size}: {said}");
    }
}

#[test]
fn a_bound_on_memory_that_is_none_is_one_sentence() {
    for size in ["", "G", "2T", "-1", "1.5G", "99999999999999G"] {
        let said = mistake(&[&format!("--memory={size}"), "/dev/null"]);
        assert!(said.contains("such as 512M or 4G"), "{size}: {said}");
    }
    for count in ["1", "1000001", "all"] {
        let said = mistake(&[&format!("--history={count}"), "/dev/null"]);
        assert!(said.contains("not a number from 2 to 1000000"), "{count}: {said}");
    }
}

#[test]
fn a_wrong_answer_to_violations_names_the_right_ones() {
    let said = mistake(&["--on-violation", "panic", "/dev/null"]);
    assert!(said.contains("report") && said.contains("stop"), "{said}");
}

#[test]
fn what_is_no_block_device_is_named() {
    let said = mistake(&["/dev/null"]);
    assert!(said.contains("/dev/null"), "{said}");
    let said = mistake(&["/nonexistent"]);
    assert!(said.contains("/nonexistent"), "{said}");
}

#[test]
fn a_guest_that_looks_like_an_option_is_refused() {
    let said = mistake(&["attach", "-oProxyCommand=touch /tmp/oops", "/dev/vdb"]);
    assert!(said.contains("its name begins with -"), "{said}");
    let said = mistake(&["attach", "--", "-oProxyCommand=touch /tmp/oops", "/dev/vdb"]);
    assert!(said.contains("its name begins with -"), "{said}");
}

#[test]
fn attach_says_what_it_would_run() {
    let output =
        monitor(&["attach", "--dry-run", "--io-limit", "2M", "root@vm1", "vm2", "/dev/vdb"]);
    assert!(output.status.success(), "{output:?}");
    let plan = String::from_utf8(output.stdout).unwrap();
    assert!(plan.contains("ssh -T -- root@vm1 "), "{plan}");
    assert!(plan.contains("ssh -T -- vm2 "), "{plan}");
    assert_eq!(plan.matches("--io-limit=2097152").count(), 2, "{plan}");
}

#[test]
fn guests_are_read_from_a_file_that_has_comments() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("targets");
    fs::write(&file, "vm1 /dev/vdb # the first\n\n# vm2 /dev/vdb\nvsock/2222\n  /dev/vdc\n")
        .unwrap();
    let output = monitor(&["attach", "--dry-run", "--targets", file.to_str().unwrap()]);
    let plan = String::from_utf8(output.stdout).unwrap();
    assert!(plan.contains("ssh -T -- vm1 "), "{plan}");
    assert!(plan.contains("ssh -T -- vsock/2222 "), "{plan}");
    assert!(!plan.contains("vm2"), "{plan}");
}

#[test]
fn the_guest_of_virtme_ng_is_found_by_its_own_configuration() {
    for (option, name) in [("--vng", "root@virtme-ng%2222"), ("--vng=7", "root@virtme-ng%7")] {
        let output = monitor(&["attach", "--dry-run", option, "/dev/vda"]);
        let plan = String::from_utf8(output.stdout).unwrap();
        let ssh = format!("/.cache/virtme-ng/.ssh/virtme-ng-ssh.conf -T -- {name} ");
        assert!(plan.contains(&ssh), "{plan}");
    }
}

#[test]
fn what_is_no_recording_is_one_sentence() {
    let said = mistake(&["replay", "/dev/null"]);
    assert!(said.contains("too short to be one"), "{said}");
    let said = mistake(&["explain", "--bytenr", "4096", "/proc/self/exe"]);
    assert!(
        said.contains("cannot be replayed: this is not what refverify-monitor writes"),
        "{said}"
    );
    let said = mistake(&["replay", "/nonexistent"]);
    assert!(said.contains("cannot open the recording /nonexistent"), "{said}");
}
