package explain;

import java.util.ArrayList;
import java.util.EnumMap;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import transformer_debugger.v1.Call.ResultPart;
import transformer_debugger.v1.DerivedScalar.GroupId;
import transformer_debugger.v1.Result.DerivedScalarSum;
import transformer_debugger.v1.Result.GroupResult;
import transformer_debugger.v1.Result.MultipleTopKResult;
import transformer_debugger.v1.TransformerDebuggerServiceOuterClass.StreamDebugResponse;

/** From the events of a StreamDebug call to an answer for each sub-request. */
final class DebugStream {
  private record Key(int subRequestIndex, String name) {}

  private final Chunks chunks = new Chunks();
  private final Map<Key, MultipleTopKResult.Builder> rankings = new HashMap<>();
  private final Map<Integer, Double> losses = new HashMap<>();
  private List<List<String>> tokens = List.of();
  private boolean isFinished;

  /** Reads a stream to its end; throws the call's StatusRuntimeException when it fails. */
  static List<DebugAnswer> read(Iterator<StreamDebugResponse> events) {
    DebugStream stream = new DebugStream();
    events.forEachRemaining(stream::take);
    if (!stream.isFinished) {
      throw new IllegalStateException("the stream ended too early");
    }
    return stream.answers();
  }

  private void take(StreamDebugResponse event) {
    switch (event.getEventCase()) {
      case STARTED -> tokens = event.getStarted().getSubRequestsList().stream()
          .map(one -> List.copyOf(one.getTokenStringsList())).toList();
      case RESULT -> take(event.getResult());
      case TENSOR_CHUNK -> chunks.add(event.getTensorChunk());
      case VALUES -> losses.put(event.getValues().getSubRequestIndex(), event.getValues().getLoss());
      case FINISHED -> isFinished = true;
      default -> { } // a kind that is newer than this program
    }
  }

  /** Parts are merged as they come: the lists of nodes grow, and the tensors are in the first part. */
  private void take(ResultPart part) {
    if (part.getResult().hasMultipleTopK()) {
      rankings.computeIfAbsent(
              new Key(part.getSubRequestIndex(), part.getResult().getName()),
              key -> MultipleTopKResult.newBuilder())
          .mergeFrom(part.getResult().getMultipleTopK());
    }
  }

  private List<DebugAnswer> answers() {
    List<DebugAnswer> answers = new ArrayList<>();
    for (int index = 0; index < tokens.size(); index++) {
      MultipleTopKResult nodes = ranking(index, "topKComponents");
      MultipleTopKResult sums = ranking(index, "componentSumsForTokenDisplay");
      answers.add(new DebugAnswer(
          tokens.get(index), losses.get(index), nodes.getNodeIndicesList(), scalars(nodes), sums(sums)));
    }
    return answers;
  }

  private MultipleTopKResult ranking(int subRequestIndex, String name) {
    MultipleTopKResult.Builder ranking = rankings.get(new Key(subRequestIndex, name));
    if (ranking == null) {
      throw new IllegalStateException("no result " + name);
    }
    return ranking.build();
  }

  private Map<GroupId, float[]> scalars(MultipleTopKResult ranking) {
    Map<GroupId, float[]> scalars = new EnumMap<>(GroupId.class);
    for (GroupResult group : ranking.getGroupsList()) {
      scalars.put(group.getGroupId(), chunks.elements(group.getActivations()));
    }
    return scalars;
  }

  private List<DebugAnswer.Sum> sums(MultipleTopKResult ranking) {
    List<DebugAnswer.Sum> sums = new ArrayList<>();
    for (GroupResult group : ranking.getGroupsList()) {
      for (DerivedScalarSum one : group.getSumsList()) {
        sums.add(new DebugAnswer.Sum(
            group.getGroupId(), one.getDerivedScalarType(), one.getSum().getShapeList(),
            chunks.elements(one.getSum())));
      }
    }
    return sums;
  }
}
