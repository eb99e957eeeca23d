/* Runs one signature of a SavedModel through TensorFlow's C API, the session that a model server runs.
 *
 *   session FOLDER MANIFEST
 *
 * Lines of the manifest, tensors by their name in the graph, data in files of raw bytes:
 *   in OPERATION INDEX DTYPE FILE RANK DIM...
 *   out OPERATION INDEX FILE
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tensorflow/c/c_api.h"

#define MOST 64

static void fail(const char* what, const char* why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static TF_Tensor* read_tensor(FILE* manifest, int dtype, const char* file, int rank) {
  int64_t dims[8];
  if (rank > 8) fail(file, "more than 8 dimensions");
  for (int i = 0; i < rank; ++i) {
    long long dim;
    if (fscanf(manifest, "%lld", &dim) != 1) fail(file, "no dimension");
    dims[i] = dim;
  }
  FILE* data = fopen(file, "rb");
  if (!data) fail(file, "cannot be read");
  fseek(data, 0, SEEK_END);
  size_t bytes = (size_t)ftell(data);
  rewind(data);
  TF_Tensor* tensor = TF_AllocateTensor((TF_DataType)dtype, dims, rank, bytes);
  if (fread(TF_TensorData(tensor), 1, bytes, data) != bytes) fail(file, "is cut short");
  fclose(data);
  return tensor;
}

static TF_Output find(TF_Graph* graph, const char* operation, int index) {
  TF_Output output = {TF_GraphOperationByName(graph, operation), index};
  if (!output.oper) fail(operation, "is not in the graph");
  return output;
}

int main(int argc, char** argv) {
  if (argc != 3) fail("usage", "session FOLDER MANIFEST");
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  if (TF_GetCode(status) != TF_OK) fail(argv[1], TF_Message(status));

  TF_Output inputs[MOST], outputs[MOST];
  TF_Tensor *given[MOST], *found[MOST];
  char files[MOST][512], way[8], operation[512], file[512];
  int count = 0, results = 0, index, dtype, rank;
  FILE* manifest = fopen(argv[2], "r");
  if (!manifest) fail(argv[2], "cannot be read");
  while (fscanf(manifest, "%7s %511s %d", way, operation, &index) == 3) {
    if (count == MOST || results == MOST) fail(argv[2], "too many tensors");
    if (strcmp(way, "in") == 0) {
      if (fscanf(manifest, "%d %511s %d", &dtype, file, &rank) != 3) fail(operation, "no type, file and rank");
      inputs[count] = find(graph, operation, index);
      given[count++] = read_tensor(manifest, dtype, file, rank);
    } else {
      if (fscanf(manifest, "%511s", files[results]) != 1) fail(operation, "no file");
      outputs[results++] = find(graph, operation, index);
    }
  }
  fclose(manifest);
  TF_SessionRun(session, NULL, inputs, given, count, outputs, found, results, NULL, 0, NULL, status);
  if (TF_GetCode(status) != TF_OK) fail("run", TF_Message(status));
  for (int i = 0; i < results; ++i) {
    FILE* data = fopen(files[i], "wb");
    size_t bytes = TF_TensorByteSize(found[i]);
    if (!data || fwrite(TF_TensorData(found[i]), 1, bytes, data) != bytes) fail(files[i], "cannot be written");
    fclose(data);
    TF_DeleteTensor(found[i]);
  }
  for (int i = 0; i < count; ++i) TF_DeleteTensor(given[i]);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
