"""`python -m serving.deletion_cost`: tells Kubernetes how many streams a pod holds; the emptiest goes first.

Runs beside a streaming server, as a container of the same pod. Kubernetes deletes pods with the lowest
`controller.kubernetes.io/pod-deletion-cost` first.
"""

import argparse
import logging
import os
import ssl
import sys
import time
from pathlib import Path

import httpx

from serving import logs

logger = logging.getLogger("voiceflow.deletion_cost")
ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 5.0


class PodAnnotator:
    """Writes the annotation of one pod.

    Args:
        api: Address of the Kubernetes API.
        namespace: Of the pod.
        pod: Its name.
        account: Folder of the service account's token and certificate; read again each time, for tokens are renewed.
    """

    def __init__(self, api: str, namespace: str, pod: str, *, account: Path = ACCOUNT) -> None:
        self._url = f"{api}/api/v1/namespaces/{namespace}/pods/{pod}"
        self._account = account
        certificate = account / "ca.crt"
        self._verify = ssl.create_default_context(cafile=str(certificate)) if certificate.is_file() else True
        self.told: int | None = None

    def tell(self, num_streams: int) -> None:
        """Write it where it is another number than the last time.

        Raises:
            httpx.HTTPError: The API is away, or refuses.
        """
        if num_streams == self.told:
            return
        headers = {
            "authorization": f"Bearer {(self._account / 'token').read_text().strip()}",
            "content-type": "application/merge-patch+json",
        }
        body = {"metadata": {"annotations": {ANNOTATION: str(num_streams)}}}
        with httpx.Client(verify=self._verify, timeout=TIMEOUT_S) as client:
            client.patch(self._url, json=body, headers=headers).raise_for_status()
        self.told = num_streams


def count_streams(metrics_url: str) -> int:
    """Streams that a server holds, by its own metrics.

    Raises:
        httpx.HTTPError: It does not answer.
    """
    text = httpx.get(metrics_url, timeout=TIMEOUT_S).raise_for_status().text
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("voiceflow_active_streams{"))
    return int(sum(float(value) for _, value in rows))


def main() -> None:
    """Tell it again and again until told to stop."""
    parser = argparse.ArgumentParser(prog="serving.deletion_cost", description=__doc__)
    parser.add_argument("--metrics", default="http://127.0.0.1:8080/metrics", help="of the streaming server")
    parser.add_argument("--every_s", type=float, default=20.0, help="seconds between two looks")
    arguments = parser.parse_args()
    logs.configure(os.environ.get("VOICEFLOW_LOG_FORMAT", "json"))
    try:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        annotator = PodAnnotator(f"https://{host}:{port}", os.environ["POD_NAMESPACE"], os.environ["POD_NAME"])
    except KeyError as err:
        print(f"error: {err} is not set; this runs in a pod (manifests/components/deletion-cost)", file=sys.stderr)
        raise SystemExit(2) from err
    while True:
        try:
            annotator.tell(count_streams(arguments.metrics))
        except (httpx.HTTPError, OSError) as err:
            logger.warning("the deletion cost could not be told: %s", err)
        time.sleep(arguments.every_s)


if __name__ == "__main__":
    main()
