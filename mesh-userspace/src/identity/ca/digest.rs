//! SHA-256 with the provider that TLS uses.

use rustls::crypto::aws_lc_rs::cipher_suite;

/// A digest, to keep and compare in place of what must not be kept.
pub(super) type Digest = [u8; 32];

/// SHA-256.
pub(super) fn sha256(bytes: &[u8]) -> Digest {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3");
    let output = suite.common.hash_provider.hash(bytes);
    output.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sha256() {
        let hex: String = sha256(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
