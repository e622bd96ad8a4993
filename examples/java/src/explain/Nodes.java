package explain;

import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;
import transformer_debugger.v1.Node.NodeIndex;

/** Nodes for people: how they are spelled, and which matter most. */
final class Nodes {
  private Nodes() {}

  /** A node as the command line spells it, such as {@code L1 head 0 @ 27 -> 3} or {@code L2 neuron 123 @ 27}. */
  static String spelling(NodeIndex node) {
    List<Integer> at = node.getTensorIndicesList();
    int layer = node.getLayerIndex();
    return switch (node.getNodeType()) {
      case NODE_TYPE_ATTENTION_HEAD -> "L%d head %d @ %d -> %d".formatted(layer, at.get(2), at.get(0), at.get(1));
      case NODE_TYPE_MLP_NEURON -> "L%d neuron %d @ %d".formatted(layer, at.get(1), at.get(0));
      case NODE_TYPE_LAYER -> "embedding @ %d".formatted(at.get(0));
      default -> throw new IllegalArgumentException("a node of type " + node.getNodeType());
    };
  }

  /** Rows of the node table, the largest direct effect first, whatever its sign. */
  static List<Integer> strongest(DebugAnswer answer) {
    float[] effects = answer.directEffects();
    return IntStream.range(0, effects.length).boxed()
        .sorted(Comparator.comparing(row -> -Math.abs(effects[row]))).toList();
  }
}
