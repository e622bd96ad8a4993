package explain;

import com.google.protobuf.InvalidProtocolBufferException;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.TimeUnit;
import transformer_debugger.v1.Ablation.NodeAblation;
import transformer_debugger.v1.ModelServiceGrpc;
import transformer_debugger.v1.ModelServiceGrpc.ModelServiceBlockingStub;
import transformer_debugger.v1.ModelServiceOuterClass.GetModelInfoRequest;
import transformer_debugger.v1.ModelServiceOuterClass.ModelInfo;
import transformer_debugger.v1.ModelServiceOuterClass.TokenizeRequest;
import transformer_debugger.v1.Node.NodeIndex;
import transformer_debugger.v1.Node.NodeType;
import transformer_debugger.v1.TransformerDebuggerServiceGrpc;
import transformer_debugger.v1.TransformerDebuggerServiceGrpc.TransformerDebuggerServiceBlockingStub;
import transformer_debugger.v1.TransformerDebuggerServiceOuterClass.DebugRequest;
import transformer_debugger.v1.TransformerDebuggerServiceOuterClass.DebugSubRequest;

/**
 * Asks a server why its model says " her" rather than " him", and meets an error and a cancelled stream on the way.
 * Arguments: [ADDRESS [VECTOR]]; with a vector file, what came back is compared with it.
 */
public final class Main {
  private static final String PROMPT = "When Mary and John went to the store, John gave a drink to";
  private static final long DEADLINE_SECONDS = 30;

  private final ManagedChannel channel;

  private Main(ManagedChannel channel) {
    this.channel = channel;
  }

  /** Runs the example. */
  public static void main(String[] arguments) throws IOException {
    String address = arguments.length > 0 ? arguments[0] : "127.0.0.1:50051";
    ManagedChannel channel = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
    try {
      new Main(channel).run(arguments.length > 1 ? arguments[1] : null);
    } finally {
      channel.shutdownNow();
    }
  }

  private void run(String vectorFile) throws IOException {
    ModelInfo model = describeModel();
    DebugRequest request = requestWithAblation();
    List<DebugAnswer> answers = explain(request);
    Failure failure = meetAnError(request);
    cancelStream(request.getSubRequests(0), model.getLimits().getMaxSubRequests());
    if (vectorFile != null) {
      new VectorFile(vectorFile).check(model, request, answers, failure);
      System.out.println("all as in " + vectorFile);
    }
  }

  private ModelServiceBlockingStub models() {
    return ModelServiceGrpc.newBlockingStub(channel).withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS);
  }

  private TransformerDebuggerServiceBlockingStub debugger() {
    return TransformerDebuggerServiceGrpc.newBlockingStub(channel)
        .withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS);
  }

  private ModelInfo describeModel() {
    ModelInfo model = models().getModelInfo(GetModelInfoRequest.getDefaultInstance()).getModelInfo();
    System.out.printf("%s: %d layers of %d heads%n", model.getName(), model.getNLayers(), model.getNHeads());
    return model;
  }

  /** The prompt as it is, and without head 0 of layer 1 at its last token: one call, so both have the same nodes. */
  private DebugRequest requestWithAblation() {
    TokenizeRequest text = TokenizeRequest.newBuilder().setText(PROMPT).build();
    int last = models().tokenize(text).getTokenIdsCount() - 1;
    DebugSubRequest plain = DebugSubRequest.newBuilder()
        .setPrompt(PROMPT).addTargetTokens(" her").addDistractorTokens(" him").setTopAndBottomK(10).build();
    NodeIndex head = NodeIndex.newBuilder()
        .setNodeType(NodeType.NODE_TYPE_ATTENTION_HEAD).setLayerIndex(1)
        .addAllTensorIndices(List.of(last, last, 0)).build();
    NodeAblation ablation = NodeAblation.newBuilder().setNodeIndex(head).build();
    return DebugRequest.newBuilder()
        .addSubRequests(plain).addSubRequests(plain.toBuilder().addNodeAblations(ablation)).build();
  }

  private List<DebugAnswer> explain(DebugRequest request) {
    List<DebugAnswer> answers = DebugStream.read(debugger().streamDebug(request));
    DebugAnswer plain = answers.get(0);
    DebugAnswer ablated = answers.get(1);
    System.out.printf("logit difference %.3f, without L1 head 0: %.3f%n", plain.loss(), ablated.loss());
    for (int row : Nodes.strongest(plain).stream().limit(10).toList()) {
      String node = Nodes.spelling(plain.nodes().get(row));
      System.out.printf("%8.3f %8.3f %s%n", plain.directEffects()[row], ablated.directEffects()[row], node);
    }
    return answers;
  }

  /** Asks for a layer that does not exist and for no nodes; the server names both faults. */
  private Failure meetAnError(DebugRequest request) throws InvalidProtocolBufferException {
    DebugRequest.Builder wrong = request.toBuilder();
    wrong.getSubRequestsBuilder(1).setTopAndBottomK(0)
        .getNodeAblationsBuilder(0).getNodeIndexBuilder().setLayerIndex(1000);
    try {
      DebugStream.read(debugger().streamDebug(wrong.build()));
    } catch (StatusRuntimeException error) {
      Failure failure = Failure.of(error);
      System.out.printf("refused with %s, %s:%n", failure.code(), failure.reason());
      failure.fieldViolations().forEach(
          one -> System.out.printf("  %s: %s%n", one.getField(), one.getDescription()));
      return failure;
    }
    throw new IllegalStateException("a wrong request was taken");
  }

  /** Hangs up as soon as a worker has taken up a long call; the server then stops the work. */
  private void cancelStream(DebugSubRequest one, int nSubRequests) {
    DebugRequest request = DebugRequest.newBuilder().addAllSubRequests(Collections.nCopies(nSubRequests, one)).build();
    try (Context.CancellableContext call = Context.current().withCancellation()) {
      call.run(() -> debugger().streamDebug(request).forEachRemaining(event -> {
        if (event.hasStarted()) {
          call.cancel(null);
        }
      }));
    } catch (StatusRuntimeException error) {
      System.out.printf("cancelled: %s%n", error.getStatus().getCode());
      if (error.getStatus().getCode() == Status.Code.CANCELLED) {
        return;
      }
    }
    throw new IllegalStateException("the stream was not cancelled");
  }
}
