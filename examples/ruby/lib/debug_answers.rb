# From the messages of a StreamDebug call to an answer for each sub-request.

require "tensors"

# tokens: of the prompt, as text; loss: the logit difference; nodes: those that matter; scalars: by name, a number for
# each node; sums: derived scalars summed over everything but the tokens.
DebugAnswer = Struct.new(:tokens, :loss, :nodes, :scalars, :sums)
Sum = Struct.new(:group_id, :derived_scalar_type, :shape, :elements)

module DebugAnswers
  SCALARS = {
    GROUP_ID_WRITE_NORM: :writeNorm,
    GROUP_ID_ACT_TIMES_GRAD: :actTimesGrad,
    GROUP_ID_DIRECTION_WRITE: :directEffect,
    GROUP_ID_ACTIVATION: :activation
  }.freeze
  Ranking = Struct.new(:nodes, :groups)

  # Reads a stream to its end. Raises the call's GRPC::BadStatus when it fails.
  def self.read(stream)
    tokens, losses, rankings, chunks, finished = [], {}, {}, Chunks.new, nil
    stream.each do |message|
      case message.event
      when :started then tokens = message.started.sub_requests.map { |one| one.token_strings.to_a }
      when :result then add_part(rankings, message.result)
      when :tensor_chunk then chunks.add(message.tensor_chunk)
      when :values then losses[message.values.sub_request_index] = message.values.loss
      when :finished then finished = message.finished
      end
    end
    raise "the stream ended too early" unless finished

    tokens.each_with_index.map do |of_prompt, index|
      nodes = rankings.fetch([index, "topKComponents"])
      sums = rankings.fetch([index, "componentSumsForTokenDisplay"])
      DebugAnswer.new(of_prompt, losses[index], nodes.nodes, scalars(nodes, chunks), sums(sums, chunks))
    end
  end

  # Later parts of a result bring more nodes; the tensors are in its first part.
  def self.add_part(rankings, part)
    return if part.result.result != :multiple_top_k

    ranking = (rankings[[part.sub_request_index, part.result.name]] ||= Ranking.new([], []))
    ranking.nodes.concat(part.result.multiple_top_k.node_indices.to_a)
    ranking.groups.concat(part.result.multiple_top_k.groups.to_a)
  end

  def self.scalars(ranking, chunks)
    ranking.groups.to_h { |group| [SCALARS.fetch(group.group_id), chunks.elements(group.activations)] }
  end

  def self.sums(ranking, chunks)
    ranking.groups.flat_map do |group|
      group.sums.map do |one|
        Sum.new(group.group_id, one.derived_scalar_type, one.sum.shape.to_a, chunks.elements(one.sum))
      end
    end
  end

  private_class_method :add_part, :scalars, :sums
end
