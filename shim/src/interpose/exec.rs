//! Other programs: exec(3), posix_spawn(3), system(3) and their kin.

use std::os::unix::ffi::OsStrExt;

use libc::{FILE, c_char, c_int, c_void, pid_t};
use libc::{posix_spawn_file_actions_t, posix_spawnattr_t};

use crate::errno::Errno;
use crate::fd::{Kind, lookup};
use crate::real::hooks;
use crate::share::exec::{self, Next, is_there};
use crate::user_mem::{self, UserPtr};
use crate::variadic::{VaList, next_pointer, variadic};

/// `argv` and `envp` as exec takes them.
type Words = *const *const c_char;

unsafe extern "C" {
    /// The environment of programs that are not given one.
    static mut environ: Words;
}

fn inherited_env() -> Words {
    // SAFETY: as racy as every use of the environment.
    unsafe { environ }
}

/// The program that a path names. Longer paths than any are not looked at.
fn by_path(path: *const c_char, env: Words) -> Next<impl FnOnce() -> Option<Vec<u8>>> {
    let find = move || {
        let path = text(path)?;
        is_there(&path).then_some(path)
    };
    next_program(find, env)
}

/// The program that a name stands for, which is looked for in PATH unless it has a slash.
fn by_name(file: *const c_char, env: Words) -> Next<impl FnOnce() -> Option<Vec<u8>>> {
    let find = move || {
        let name = text(file)?;
        if name.contains(&b'/') {
            return is_there(&name).then_some(name);
        }
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
        std::env::split_paths(&path)
            .map(|folder| folder.join(std::ffi::OsStr::from_bytes(&name)))
            .map(|file| file.as_os_str().as_bytes().to_vec())
            .find(|file| is_there(file))
    };
    next_program(find, env)
}

/// The program that a path from the directory `dir` names, or an empty path that directory's descriptor.
fn by_descriptor(
    dir: c_int,
    path: *const c_char,
    env: Words,
) -> Next<impl FnOnce() -> Option<Vec<u8>>> {
    let find = move || {
        let path = text(path)?;
        if dir == libc::AT_FDCWD || path.starts_with(b"/") {
            return is_there(&path).then_some(path);
        }
        let mut whole = format!("/proc/self/fd/{dir}").into_bytes();
        if !path.is_empty() {
            whole.push(b'/');
            whole.extend(path);
        }
        Some(whole)
    };
    next_program(find, env)
}

/// The shell that libc starts for system(3) and its kin.
fn shell() -> Next<impl FnOnce() -> Option<Vec<u8>>> {
    next_program(|| Some(b"/bin/sh".to_vec()), inherited_env())
}

fn next_program<F>(find: F, env: Words) -> Next<F> {
    let env = UserPtr::new(env.cast_mut().cast());
    Next { find, env }
}

fn text(at: *const c_char) -> Option<Vec<u8>> {
    let mut room = [0; libc::PATH_MAX as usize];
    user_mem::read_str(UserPtr::new(at.cast_mut().cast()), &mut room).map(<[u8]>::to_vec)
}

/// The arguments of execl(3) and its kin up to their NULL. Programs call it after vfork(2), in the memory
/// of another process, which is why few arguments take no memory from the heap: nobody would free it.
struct Arguments {
    few: [*const c_char; Self::FEW],
    many: Vec<*const c_char>,
    count: usize,
}

impl Arguments {
    const FEW: usize = 256;

    /// # Safety
    /// `list` is a `va_list` of strings that a NULL ends, and `first` comes before it.
    unsafe fn gather(first: *const c_char, list: VaList) -> Self {
        let mut gathered = Self {
            few: [core::ptr::null(); Self::FEW],
            many: Vec::new(),
            count: 0,
        };
        let mut word = first;
        loop {
            gathered.add(word);
            if word.is_null() {
                return gathered;
            }
            // SAFETY: the list goes on at least to its NULL.
            word = unsafe { next_pointer(list) }.cast_const().cast();
        }
    }

    fn add(&mut self, word: *const c_char) {
        match self.few.get_mut(self.count) {
            Some(at) => *at = word,
            None => {
                if self.many.is_empty() {
                    self.many.extend_from_slice(&self.few);
                }
                self.many.push(word);
            }
        }
        self.count += 1;
    }

    fn words(&self) -> Words {
        if self.many.is_empty() {
            self.few.as_ptr()
        } else {
            self.many.as_ptr()
        }
    }
}

unsafe extern "C" fn list_execl(path: *const c_char, first: *const c_char, list: VaList) -> c_int {
    // SAFETY: the caller's own arguments, gathered.
    unsafe { execv(path, Arguments::gather(first, list).words()) }
}

unsafe extern "C" fn list_execlp(file: *const c_char, first: *const c_char, list: VaList) -> c_int {
    // SAFETY: the caller's own arguments, gathered.
    unsafe { execvp(file, Arguments::gather(first, list).words()) }
}

unsafe extern "C" fn list_execle(path: *const c_char, first: *const c_char, list: VaList) -> c_int {
    // SAFETY: the caller's own arguments, gathered; the environment follows their NULL.
    unsafe {
        let arguments = Arguments::gather(first, list);
        execve(
            path,
            arguments.words(),
            next_pointer(list).cast_const().cast(),
        )
    }
}

variadic! {
    /// execl(3).
    fn execl(2 named) => list_execl, list in "rdx" or "x2"
}

variadic! {
    /// execlp(3).
    fn execlp(2 named) => list_execlp, list in "rdx" or "x2"
}

variadic! {
    /// execle(3).
    fn execle(2 named) => list_execle, list in "rdx" or "x2"
}

hooks! {
    /// execve(2).
    fn execve(path: *const c_char, argv: Words, envp: Words) -> c_int {
        let _handed_over = exec::before(by_path(path, envp));
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::execve(path, argv, envp) }
    }

    /// execv(3).
    fn execv(path: *const c_char, argv: Words) -> c_int {
        let _handed_over = exec::before(by_path(path, inherited_env()));
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::execv(path, argv) }
    }

    /// execvp(3), which looks for the program itself.
    fn execvp(file: *const c_char, argv: Words) -> c_int {
        let _handed_over = exec::before(by_name(file, inherited_env()));
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::execvp(file, argv) }
    }

    /// execvpe(3).
    fn execvpe(file: *const c_char, argv: Words, envp: Words) -> c_int {
        let _handed_over = exec::before(by_name(file, envp));
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::execvpe(file, argv, envp) }
    }

    /// execveat(2).
    fn execveat(dir: c_int, path: *const c_char, argv: Words, envp: Words, flags: c_int) -> c_int {
        let _handed_over = exec::before(by_descriptor(dir, path, envp));
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::execveat(dir, path, argv, envp, flags) }
    }

    /// fexecve(3).
    fn fexecve(fd: c_int, argv: Words, envp: Words) -> c_int {
        let _handed_over = exec::before(by_descriptor(fd, c"".as_ptr(), envp));
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::fexecve(fd, argv, envp) }
    }

    /// posix_spawn(3).
    fn posix_spawn(
        pid: *mut pid_t, path: *const c_char, actions: *const posix_spawn_file_actions_t,
        attributes: *const posix_spawnattr_t, argv: Words, envp: Words,
    ) -> c_int {
        exec::before_child(by_path(path, envp), actions.cast());
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::posix_spawn(pid, path, actions, attributes, argv, envp) }
    }

    /// posix_spawnp(3).
    fn posix_spawnp(
        pid: *mut pid_t, file: *const c_char, actions: *const posix_spawn_file_actions_t,
        attributes: *const posix_spawnattr_t, argv: Words, envp: Words,
    ) -> c_int {
        exec::before_child(by_name(file, envp), actions.cast());
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::posix_spawnp(pid, file, actions, attributes, argv, envp) }
    }

    /// posix_spawn_file_actions_init(3).
    fn posix_spawn_file_actions_init(actions: *mut posix_spawn_file_actions_t) -> c_int {
        exec::forget_sources(actions.cast());
        // SAFETY: forwards the caller's own argument.
        unsafe { next::posix_spawn_file_actions_init(actions) }
    }

    /// posix_spawn_file_actions_destroy(3).
    fn posix_spawn_file_actions_destroy(actions: *mut posix_spawn_file_actions_t) -> c_int {
        exec::forget_sources(actions.cast());
        // SAFETY: forwards the caller's own argument.
        unsafe { next::posix_spawn_file_actions_destroy(actions) }
    }

    /// posix_spawn_file_actions_adddup2(3). A number that the library uses is not the program's to pass on.
    fn posix_spawn_file_actions_adddup2(
        actions: *mut posix_spawn_file_actions_t, fd: c_int, new: c_int,
    ) -> c_int {
        match lookup(fd) {
            Some(file) if file.kind() == Kind::Own => return Errno::EBADF.0,
            Some(_) => exec::note_source(actions.cast(), fd),
            None => {}
        }
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::posix_spawn_file_actions_adddup2(actions, fd, new) }
    }

    /// system(3).
    fn system(command: *const c_char) -> c_int {
        exec::before_child(shell(), core::ptr::null());
        // SAFETY: forwards the caller's own argument.
        unsafe { next::system(command) }
    }

    /// popen(3).
    fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE {
        exec::before_child(shell(), core::ptr::null());
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::popen(command, mode) }
    }

    /// wordexp(3), whose command substitution starts a shell.
    fn wordexp(words: *const c_char, result: *mut c_void, flags: c_int) -> c_int {
        exec::before_child(shell(), core::ptr::null());
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::wordexp(words, result, flags) }
    }
}
