"""Find every crash, I/O error and act of tampering that can lose or corrupt what your app saved."""
