//! Where pages lie: the directories of the caller, and for root those of everyone.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{env, fs};

use rustix::process::geteuid;

/// Directories whose pages the caller may read.
fn directories() -> Vec<PathBuf> {
    let mut all = Vec::new();
    if let Some(runtime) = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
        && runtime.is_absolute()
    {
        all.push(runtime.join("kcmshim"));
    }
    all.push(format!("/tmp/kcmshim-{}", geteuid().as_raw()).into());
    if geteuid().is_root() {
        let users = children(Path::new("/run/user"));
        all.extend(users.map(|user| user.join("kcmshim")));
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("kcmshim-"))
        };
        all.extend(children(Path::new("/tmp")).filter(is_ours));
    }
    all.sort();
    all.dedup();
    all.retain(|path| is_private(path));
    all
}

fn children(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

/// A real directory that only its owner can write to, who is the caller or, for root, anyone.
fn is_private(path: &Path) -> bool {
    let me = geteuid();
    fs::symlink_metadata(path).is_ok_and(|meta| {
        meta.is_dir() && meta.mode() & 0o022 == 0 && (me.is_root() || meta.uid() == me.as_raw())
    })
}

/// Every page there is, with the process it is named after, in order of process.
pub(crate) fn pages() -> Vec<(u32, PathBuf)> {
    let mut found: Vec<_> = directories()
        .iter()
        .flat_map(|directory| children(directory))
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path)))
        .collect();
    found.sort();
    found
}
