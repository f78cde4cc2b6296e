//! Link settings of the preload library.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Our constructor resolves the real functions; it has to run before any other library's.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,initfirst");
    // Hooks stay mapped: other libraries hold pointers to them, and threads sit inside them.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkcmshim.so");
}
