"""KServe's own clients against an endpoint; run by the interpreter of an environment that has kserve.

``kserve_client.py HTTP_ADDRESS GRPC_ADDRESS`` prints what they saw, as JSON.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from numpy.typing import NDArray


def request(model: str, array: NDArray[np.float32], *, binary: bool) -> InferRequest:
    tensor = InferInput(name="IN", shape=list(array.shape), datatype="FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="7")


async def over_http(url: str) -> dict[str, object]:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    array = np.array([1.5, 2.5], np.float32)
    answers = [
        await client.infer(url, request("id_fp32", array, binary=binary), model_name="id_fp32")
        for binary in (True, False)
    ]
    seen = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "id_fp32"),
        "unknown_ready": await client.is_model_ready(url, "nope"),
        "values": [answer.outputs[0].as_numpy().tolist() for answer in answers],
        "ids": [answer.id for answer in answers],
    }
    try:
        await client.infer(url, request("nope", array, binary=False), model_name="nope")
    except Exception as error:
        seen["refusal"] = str(error)
    await client.close()
    return seen


async def over_grpc(address: str) -> dict[str, object]:
    client = InferenceGRPCClient(address)
    array = np.array([1.5, 2.5], np.float32)
    answers = [await client.infer(request("id_fp32", array, binary=binary)) for binary in (True, False)]
    seen = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready("id_fp32"),
        "unknown_ready": await client.is_model_ready("nope"),
        "values": [answer.outputs[0].as_numpy().tolist() for answer in answers],
        "ids": [answer.id for answer in answers],
    }
    try:
        await client.infer(request("nope", array, binary=True))
    except Exception as error:
        seen["refusal"] = str(error)
    await client.close()
    return seen


async def main() -> None:
    http, grpc = sys.argv[1:]
    print(json.dumps({"http": await over_http(f"http://{http}"), "grpc": await over_grpc(grpc)}))


asyncio.run(main())
