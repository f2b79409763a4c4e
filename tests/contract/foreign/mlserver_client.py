"""MLServer's codecs, types and gRPC stubs against an endpoint; run by the interpreter of an environment that has them.

``mlserver_client.py HTTP_ADDRESS GRPC_ADDRESS`` prints what they saw, as JSON.
"""

import json
import sys
import urllib.request

import grpc
import numpy as np
from mlserver.codecs import NumpyCodec, NumpyRequestCodec
from mlserver.grpc import converters
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse, Parameters

ARRAY = np.array([[1.5, 2.5], [3.5, 4.5]], np.float32)  # of one dimension, its codec would make two


def request() -> InferenceRequest:
    tensor = NumpyCodec.encode_input("IN", ARRAY)
    return InferenceRequest(id="7", inputs=[tensor], parameters=Parameters(content_type=NumpyRequestCodec.ContentType))


def over_http(address: str) -> dict[str, object]:
    url = f"http://{address}/v2/models/nobatch2d"
    with urllib.request.urlopen(url) as answer:
        metadata = MetadataModelResponse.model_validate_json(answer.read())
    asked = urllib.request.Request(
        f"{url}/infer", data=request().model_dump_json().encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked) as answer:
        response = InferenceResponse.model_validate_json(answer.read())
    values = NumpyCodec.decode_output(response.outputs[0])
    return {"inputs": [each.name for each in metadata.inputs], "values": values.tolist(), "id": response.id}


def over_grpc(address: str) -> dict[str, object]:
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        seen = {
            "live": stub.ServerLive(messages.ServerLiveRequest()).live,
            "unknown_ready": stub.ModelReady(messages.ModelReadyRequest(name="nope")).ready,
            "inputs": [
                each.name for each in stub.ModelMetadata(messages.ModelMetadataRequest(name="nobatch2d")).inputs
            ],
            "index": len(stub.RepositoryIndex(messages.RepositoryIndexRequest()).models),
        }
        for raw in (False, True):
            asked = converters.ModelInferRequestConverter.from_types(
                request(), model_name="nobatch2d", model_version="1", use_raw=raw
            )
            response = converters.ModelInferResponseConverter.to_types(stub.ModelInfer(asked))
            values = NumpyCodec.decode_output(response.outputs[0])
            seen["raw" if raw else "typed"] = {"values": values.tolist(), "id": response.id}
        try:
            stub.ModelMetadata(messages.ModelMetadataRequest(name="nope"))
        except grpc.RpcError as error:
            seen["refusal"] = error.code().name
    return seen


http_address, grpc_address = sys.argv[1:]
print(json.dumps({"http": over_http(http_address), "grpc": over_grpc(grpc_address)}))
