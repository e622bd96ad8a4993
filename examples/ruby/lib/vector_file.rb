# Compares what came back with the vector file that all examples share. A program of your own does not need this.

require "json"

require "nodes"

class VectorFile
  TOLERANCE = 1e-4

  def initialize(path)
    @path = path
    @vector = JSON.parse(File.read(path))
  end

  # Raises where anything differs.
  def check(model, request, answers, failure)
    description = { "name" => model.name, "digest" => model.digest,
                    "nLayers" => model.n_layers, "nHeads" => model.n_heads }
    same(description, @vector["model"], "the model")
    same(request, request.class.decode_json(@vector["request"].to_json), "the request")
    same(answers.size, @vector["answers"].size, "the number of answers")
    answers.zip(@vector["answers"]) { |answer, expected| check_answer(answer, expected) }
    ten = Nodes.strongest(answers[0]).first(10).map { |row| Nodes.spelling(answers[0].nodes[row]) }
    same(ten, @vector["answers"][0]["nodes"].first(10).map { |one| one["node"] }, "the strongest nodes")
    check_failure(failure)
    puts "all as in #{@path}"
  end

  private

  def check_answer(answer, expected)
    same(answer.tokens, expected["tokens"], "the tokens")
    close(answer.loss, expected["loss"], "loss")
    check_nodes(answer, expected["nodes"])
    same(answer.sums.size, expected["sums"].size, "the number of sums")
    answer.sums.zip(expected["sums"]) { |sum, expected_sum| check_sum(sum, expected_sum) }
  end

  def check_nodes(answer, expected)
    rows = answer.nodes.each_with_index.to_h { |node, row| [Nodes.spelling(node), row] }
    same(rows.keys.sort, expected.map { |one| one["node"] }.sort, "the nodes")
    expected.each do |one|
      row = rows.fetch(one["node"])
      answer.scalars.each { |name, values| close(values[row], one[name.to_s], "#{name} of #{one["node"]}") }
    end
  end

  def check_sum(sum, expected)
    names = [sum.group_id.to_s, sum.derived_scalar_type.to_s]
    same([*names, sum.shape], expected.values_at("groupId", "derivedScalarType", "shape"), "a sum")
    same(sum.elements.size, expected["values"].size, "the size of #{names}")
    sum.elements.zip(expected["values"]) { |actual, value| close(actual, value, names) }
  end

  def check_failure(failure)
    violations = failure.field_violations.map { |one| { "field" => one.field, "reason" => one.reason } }
    actual = { "code" => failure.code.to_s, "reason" => failure.reason, "fieldViolations" => violations }
    same(actual, @vector["refused"].slice(*actual.keys), "the refusal")
  end

  def same(actual, expected, what)
    raise "#{what}: #{actual} in place of #{expected}" if actual != expected
  end

  def close(actual, expected, what)
    difference = (actual - expected).abs
    raise "#{what}: #{actual} in place of #{expected}" unless difference <= TOLERANCE * [1, expected.abs].max
  end
end
