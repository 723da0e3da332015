//! Answers of authorities, good and bad ones.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::answer::{AnswerError, check};
use super::*;
use crate::identity::testing::{TestAuthority, identity};

/// An identity's request, and answers to it.
struct Asked {
    identity: Identity,
    key: KeyPair,
    csr: rcgen::CertificateSigningRequest,
}

impl Asked {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        Self { identity: identity("web"), key, csr }
    }

    fn check(&self, elements: &[String]) -> Result<(usize, usize), AnswerError> {
        let request = SigningRequest {
            identity: &self.identity,
            csr: self.csr.der(),
            validity: Duration::from_hours(1),
        };
        check(&request, elements).map(|signed| (signed.chain.len(), signed.roots.len()))
    }
}

#[test]
fn every_shape_that_authorities_give_is_understood() {
    let asked = Asked::new();
    let (root, old) = (TestAuthority::new(), TestAuthority::new());
    let leaf = pem::certificate(&root.leaf(&asked.identity, &asked.key, |_| {}));
    let (root, old) = (pem::certificate(&root.root), pem::certificate(&old.root));
    assert_eq!(asked.check(&[leaf.clone(), root.clone()]), Ok((1, 1)));
    assert_eq!(asked.check(&[leaf.clone(), format!("{old}\n{root}\n")]), Ok((1, 2)), "istiod's bundle");
    assert_eq!(asked.check(&[leaf.clone(), old.clone(), root.clone()]), Ok((1, 2)), "one an element");
    assert_eq!(asked.check(&[leaf.clone(), root.clone(), root.clone()]), Ok((1, 1)), "twice");
    assert_eq!(asked.check(&[format!("{leaf}{root}")]), Ok((1, 1)), "all in one");
}

#[test]
fn an_intermediate_is_found_where_it_stands() {
    let asked = Asked::new();
    let make = |cn: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, cn);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params, KeyPair::generate().unwrap())
    };
    let (root_params, root_key) = make("root");
    let root = root_params.self_signed(&root_key).unwrap();
    let (middle_params, middle_key) = make("middle");
    let middle = middle_params.signed_by(&middle_key, &Issuer::from_params(&root_params, &root_key)).unwrap();
    let mut params = crate::identity::authority::leaf_params(&asked.identity).unwrap();
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
    let leaf = params.signed_by(&asked.key, &Issuer::from_params(&middle_params, &middle_key)).unwrap();
    assert_eq!(asked.check(&[leaf.pem(), middle.pem(), root.pem()]), Ok((2, 1)), "istiod");
    assert_eq!(asked.check(&[leaf.pem() + &middle.pem(), root.pem()]), Ok((2, 1)), "istio-csr");
    assert!(matches!(asked.check(&[leaf.pem(), root.pem()]), Err(AnswerError::Chain(_))));
}

#[test]
fn an_answer_is_not_believed_for_being_one() {
    let asked = Asked::new();
    let (root, other) = (TestAuthority::new(), TestAuthority::new());
    let good = pem::certificate(&root.leaf(&asked.identity, &asked.key, |_| {}));
    let pem = pem::certificate(&root.root);
    let leaf = |spoil: fn(&mut CertificateParams)| {
        vec![pem::certificate(&root.leaf(&asked.identity, &asked.key, spoil)), pem.clone()]
    };
    let another_key = root.leaf(&asked.identity, &KeyPair::generate().unwrap(), |_| {});
    let somebody = root.leaf(&identity("other"), &asked.key, |_| {});
    let expired = leaf(|params| {
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(2);
        params.not_after = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
    });
    let one_way = leaf(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let authority = leaf(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let refused = |elements: &[String]| asked.check(elements).unwrap_err();
    assert_eq!(refused(&[]), AnswerError::Empty);
    assert_eq!(refused(&["hello".to_owned(), pem.clone()]), AnswerError::Malformed);
    assert_eq!(refused(&[good.clone(), String::new()]), AnswerError::Malformed);
    assert_eq!(refused(std::slice::from_ref(&good)), AnswerError::NoRoot);
    assert_eq!(refused(&[pem::certificate(b"hello"), pem.clone()]), AnswerError::Malformed);
    assert_eq!(refused(&[pem::certificate(&another_key), pem.clone()]), AnswerError::WrongKey);
    let name = identity("other").to_string();
    assert_eq!(refused(&[pem::certificate(&somebody), pem.clone()]), AnswerError::OtherIdentity(name));
    assert!(matches!(refused(&expired), AnswerError::Chain(_)));
    assert_eq!(refused(&one_way), AnswerError::Usage);
    assert_eq!(refused(&authority), AnswerError::Authority);
    assert!(matches!(refused(&[good.clone(), pem::certificate(&other.root)]), AnswerError::Chain(_)));
    let many: Vec<String> = std::iter::repeat_n(good, 40).chain([pem.clone()]).collect();
    assert_eq!(refused(&many), AnswerError::TooMany);
}

#[test]
fn what_an_authority_says_is_fit_for_a_log() {
    let status = Status::permission_denied(format!("no\n\u{1b}[31m{}", "x".repeat(10_000)));
    let text = refused(&identity("web"), &status).to_string();
    assert!(!text.contains('\n') && !text.contains('\u{1b}') && text.len() < 1000, "{text}");
    assert!(matches!(refused(&identity("web"), &Status::unavailable("busy")), SignError::Unavailable(_)));
}
