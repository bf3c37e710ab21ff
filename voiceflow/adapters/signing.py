"""Signatures over a model's folder, by sigstore's model-signing with a key file."""

import importlib.util
from pathlib import Path
from typing import Any

from voiceflow.audio import file_digest
from voiceflow.errors import ConfigError, ModelError, SignatureError

SIGNATURE = "model.sig"
VERIFY_VARIABLE, SIGN_VARIABLE = "VOICEFLOW_VERIFY_KEY", "VOICEFLOW_SIGN_KEY"
"""A public key that what is served or promoted must be signed for; a private key to sign with."""
DIGEST_VARIABLE = "VOICEFLOW_MODEL_DIGEST"
"""SHA-256 that a served file must have."""


def sign_folder(folder: Path, private_key: Path) -> None:
    """Sign every file of a folder; the signature lies beside them as model.sig.

    Raises:
        ConfigError: No such key, or not one that can be signed with.
    """
    _check_key(private_key, "private")
    from model_signing import signing

    signature = folder / SIGNATURE
    signature.unlink(missing_ok=True)
    try:
        config: Any = signing.Config
        signer = config().use_elliptic_key_signer(private_key=private_key)
        signer.set_hashing_config(_hashing(signature)).sign(folder, signature)
    except (ValueError, TypeError) as err:
        raise ConfigError(f"{private_key}: expected an unencrypted elliptic-curve private key in PEM ({err})") from err


def verify_folder(folder: Path, public_key: Path) -> None:
    """Check that a folder holds exactly the files that were signed, unchanged, by the owner of a key.

    Raises:
        SignatureError: No signature, another's, or files that differ; says which.
        ConfigError: No such key.
    """
    _check_key(public_key, "public")
    from model_signing import verifying

    signature = folder / SIGNATURE
    if not signature.is_file():
        raise SignatureError(folder, f"there is no {SIGNATURE}: the model is unsigned")
    try:
        config: Any = verifying.Config
        verifier = config().use_elliptic_key_verifier(public_key=public_key)
        verifier.set_hashing_config(_hashing(signature)).verify(folder, signature)
    except Exception as err:  # the library raises ValueError, and cryptography's and sigstore's own errors
        raise SignatureError(
            folder, str(err) or f"{type(err).__name__}: signed by another key than {public_key}"
        ) from err


def verify_model(path: Path, *, digest: str = "", public_key: Path | None = None) -> None:
    """What a server does before it loads a file: nothing, unless it was told what to expect.

    Args:
        path: The ONNX file; its folder holds what was signed with it.
        digest: SHA-256 that it must have; empty for any.
        public_key: Key that its folder must be signed for; None for no check.

    Raises:
        ModelError: Another file than the one with this digest.
        SignatureError: See `verify_folder`.
    """
    if digest:
        actual = file_digest(path)
        if actual != digest:
            raise ModelError(
                f"{path}: expected the file with digest {digest[:16]}, got {actual[:16]}; "
                "it is not what was promoted, or was changed since: fetch it again, or promote again"
            )
    if public_key is not None:
        verify_folder(path.parent, public_key)


def _check_key(path: Path, kind: str) -> None:
    if not path.is_file():
        raise ConfigError(f"{path}: no such {kind} key; docs/rollout.md tells how to make a pair")
    if importlib.util.find_spec("model_signing") is None:
        raise ConfigError("signatures need model-signing; run `pip install 'voiceflow[serve]'`")


def _hashing(signature: Path) -> Any:
    from model_signing import hashing

    config: Any = hashing.Config
    return config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
