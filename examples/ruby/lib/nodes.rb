# Nodes for people: how they are spelled, and which matter most.
module Nodes
  # A node as the command line spells it, such as `L1 head 0 @ 27 -> 3` or `L2 neuron 123 @ 27`.
  def self.spelling(node)
    token, *rest = node.tensor_indices.to_a
    case node.node_type
    when :NODE_TYPE_ATTENTION_HEAD then "L#{node.layer_index} head #{rest[1]} @ #{token} -> #{rest[0]}"
    when :NODE_TYPE_MLP_NEURON then "L#{node.layer_index} neuron #{rest[0]} @ #{token}"
    when :NODE_TYPE_LAYER then "embedding @ #{token}"
    else raise "a node of type #{node.node_type}"
    end
  end

  # Rows of the node table, the largest direct effect first, whatever its sign.
  def self.strongest(answer)
    answer.nodes.each_index.sort_by { |row| -answer.scalars[:directEffect][row].abs }
  end
end
