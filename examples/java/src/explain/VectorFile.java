package explain;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.util.JsonFormat;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import transformer_debugger.v1.DerivedScalar.GroupId;
import transformer_debugger.v1.ModelServiceOuterClass.ModelInfo;
import transformer_debugger.v1.TransformerDebuggerServiceOuterClass.DebugRequest;

/**
 * Compares what came back with the vector file that all examples share. A program of your own does not need this.
 * Every method throws where anything differs.
 */
final class VectorFile {
  private static final double TOLERANCE = 1e-4;
  private static final Map<String, GroupId> SCALARS = Map.of(
      "writeNorm", GroupId.GROUP_ID_WRITE_NORM,
      "actTimesGrad", GroupId.GROUP_ID_ACT_TIMES_GRAD,
      "directEffect", GroupId.GROUP_ID_DIRECTION_WRITE,
      "activation", GroupId.GROUP_ID_ACTIVATION);

  private final JsonObject vector;

  VectorFile(String path) throws IOException {
    vector = JsonParser.parseString(Files.readString(Path.of(path))).getAsJsonObject();
  }

  void check(ModelInfo model, DebugRequest request, List<DebugAnswer> answers, Failure failure)
      throws InvalidProtocolBufferException {
    checkModel(model);
    DebugRequest.Builder expected = DebugRequest.newBuilder();
    JsonFormat.parser().merge(vector.get("request").toString(), expected);
    same(request, expected.build(), "the request");
    same(answers.size(), vector.getAsJsonArray("answers").size(), "the number of answers");
    for (int index = 0; index < answers.size(); index++) {
      checkAnswer(answers.get(index), vector.getAsJsonArray("answers").get(index).getAsJsonObject());
    }
    checkStrongest(answers.get(0));
    checkFailure(failure);
  }

  private void checkModel(ModelInfo model) {
    JsonObject description = new JsonObject();
    description.addProperty("name", model.getName());
    description.addProperty("digest", model.getDigest());
    description.addProperty("nLayers", model.getNLayers());
    description.addProperty("nHeads", model.getNHeads());
    same(description.toString(), vector.get("model").toString(), "the model");
  }

  private static void checkAnswer(DebugAnswer answer, JsonObject expected) {
    same(answer.tokens(), strings(expected.get("tokens")), "the tokens");
    close(answer.loss(), expected.get("loss"), "loss");
    Map<String, Integer> rows = new HashMap<>();
    for (int row = 0; row < answer.nodes().size(); row++) {
      rows.put(Nodes.spelling(answer.nodes().get(row)), row);
    }
    same(rows.size(), expected.getAsJsonArray("nodes").size(), "the number of nodes");
    for (JsonElement one : expected.getAsJsonArray("nodes")) {
      String node = one.getAsJsonObject().get("node").getAsString();
      Integer row = Objects.requireNonNull(rows.get(node), node + " is missing");
      SCALARS.forEach((name, group) ->
          close(answer.scalars().get(group)[row], one.getAsJsonObject().get(name), name + " of " + node));
    }
    same(answer.sums().size(), expected.getAsJsonArray("sums").size(), "the number of sums");
    for (int index = 0; index < answer.sums().size(); index++) {
      checkSum(answer.sums().get(index), expected.getAsJsonArray("sums").get(index).getAsJsonObject());
    }
  }

  private static void checkSum(DebugAnswer.Sum sum, JsonObject expected) {
    String name = sum.derivedScalarType().name();
    same(name, expected.get("derivedScalarType").getAsString(), "a sum");
    same(sum.groupId().name(), expected.get("groupId").getAsString(), "the group of " + name);
    same(sum.shape().toString().replace(" ", ""), expected.get("shape").toString(), "the shape of " + name);
    for (int at = 0; at < sum.elements().length; at++) {
      close(sum.elements()[at], expected.getAsJsonArray("values").get(at), name);
    }
  }

  private void checkStrongest(DebugAnswer answer) {
    List<String> ten = Nodes.strongest(answer).stream().limit(10)
        .map(row -> Nodes.spelling(answer.nodes().get(row))).toList();
    List<String> expected = new ArrayList<>();
    for (JsonElement one : vector.getAsJsonArray("answers").get(0).getAsJsonObject().getAsJsonArray("nodes")) {
      expected.add(one.getAsJsonObject().get("node").getAsString());
    }
    same(ten, expected.subList(0, 10), "the strongest nodes");
  }

  private void checkFailure(Failure failure) {
    JsonObject expected = vector.getAsJsonObject("refused");
    same(failure.code().name(), expected.get("code").getAsString(), "the code");
    same(failure.reason(), expected.get("reason").getAsString(), "the reason");
    List<String> violations = failure.fieldViolations().stream()
        .map(one -> "{\"field\":\"%s\",\"reason\":\"%s\"}".formatted(one.getField(), one.getReason())).toList();
    List<String> expectedViolations = new ArrayList<>();
    expected.getAsJsonArray("fieldViolations").forEach(one -> expectedViolations.add(one.toString()));
    same(violations, expectedViolations, "the fields at fault");
  }

  private static List<String> strings(JsonElement array) {
    List<String> strings = new ArrayList<>();
    array.getAsJsonArray().forEach(one -> strings.add(one.getAsString()));
    return strings;
  }

  private static void same(Object actual, Object expected, String what) {
    if (!actual.equals(expected)) {
      throw new IllegalStateException(what + ": " + actual + " in place of " + expected);
    }
  }

  private static void close(double actual, JsonElement expected, String what) {
    double value = expected.getAsDouble();
    if (!(Math.abs(actual - value) <= TOLERANCE * Math.max(1, Math.abs(value)))) {
      throw new IllegalStateException(what + ": " + actual + " in place of " + value);
    }
  }
}
