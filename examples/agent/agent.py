"""An agent without a connector around it: it answers each message with the number of its words."""

import logging
import os
import threading
import time

from molecule_connect import MoleculeError, TransientPlatformError
from molecule_connect_agent import Message, RemoteAgentClient


def answer(message: Message) -> str:
    return f"{len(message.text.split())} words"


def stay_online(client: RemoteAgentClient) -> None:
    logging.info("the agent stops: %s", client.run_heartbeat_loop())
    client.close()  # which also ends the loop over what arrives


def reply(client: RemoteAgentClient, message: Message) -> None:
    for wait in (1, 5, 30, 0):
        try:
            client.reply(message, answer(message))
            return
        except TransientPlatformError as error:
            logging.warning("%s", error)
            time.sleep(error.retry_after or wait)
    logging.error("nobody heard the answer to %s", message.activity_id)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not (workspace := os.environ.get("WORKSPACE_ID")) or not (platform := os.environ.get("MOLECULE_API_URL")):
        raise SystemExit("export WORKSPACE_ID and MOLECULE_API_URL first; the sandbox prints the lines to paste")
    with RemoteAgentClient(workspace, platform, token=os.environ.get("MOLECULE_WORKSPACE_TOKEN")) as client:
        client.register()
        threading.Thread(target=stay_online, args=[client], daemon=True).start()
        for message in client.activity(poll_interval=1):
            logging.info("%s: %s", message.kind, message.text)
            if message.kind == "message":
                reply(client, message)


if __name__ == "__main__":
    try:
        main()
    except MoleculeError as error:
        raise SystemExit(f"{error}\nwhat to do: {error.hint}" if error.hint else str(error)) from error
    except KeyboardInterrupt:
        pass
