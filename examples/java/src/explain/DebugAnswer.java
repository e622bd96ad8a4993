package explain;

import java.util.List;
import java.util.Map;
import transformer_debugger.v1.DerivedScalar.DerivedScalarType;
import transformer_debugger.v1.DerivedScalar.GroupId;
import transformer_debugger.v1.Node.NodeIndex;

/**
 * The answer to one sub-request.
 *
 * @param tokens of the prompt, as text
 * @param loss the difference of logits
 * @param nodes those that matter
 * @param scalars of each node, by group
 * @param sums derived scalars summed over everything but the tokens
 */
record DebugAnswer(
    List<String> tokens, double loss, List<NodeIndex> nodes, Map<GroupId, float[]> scalars, List<Sum> sums) {

  /** One sum: a number per token, or per pair of tokens. */
  record Sum(GroupId groupId, DerivedScalarType derivedScalarType, List<Long> shape, float[] elements) {}

  float[] directEffects() {
    return scalars.get(GroupId.GROUP_ID_DIRECTION_WRITE);
  }
}
