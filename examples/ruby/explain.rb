# Asks a server why its model says " her" rather than " him", and meets an error and a cancelled stream on the way.
# Usage: ruby explain.rb [ADDRESS [VECTOR]]; with a vector file, what came back is compared with it.

$LOAD_PATH.unshift("#{__dir__}/generated", "#{__dir__}/lib")

require "grpc"
require "transformer_debugger/v1/model_service_services_pb"
require "transformer_debugger/v1/transformer_debugger_service_services_pb"

require "debug_answers"
require "failure"
require "nodes"
require "vector_file"

V1 = TransformerDebugger::V1
PROMPT = "When Mary and John went to the store, John gave a drink to"
BASELINE = "When John and Mary went to the store, John gave a drink to"
SECONDS = 30

# No call waits for ever.
def deadline = Time.now + SECONDS

def describe_model(models)
  model = models.get_model_info(V1::GetModelInfoRequest.new, deadline:).model_info
  puts "#{model.name}: #{model.n_layers} layers of #{model.n_heads} heads"
  model
end

# The prompt as it is, and without head 0 of layer 1 at the last token. One call, so that both have the same nodes.
def request_with_ablation(models)
  last = models.tokenize(V1::TokenizeRequest.new(text: PROMPT), deadline:).token_ids.size - 1
  plain = { prompt: PROMPT, target_tokens: [" her"], distractor_tokens: [" him"], top_and_bottom_k: 10 }
  head = { node_type: :NODE_TYPE_ATTENTION_HEAD, layer_index: 1, tensor_indices: [last, last, 0] }
  ablated = { **plain, node_ablations: [V1::NodeAblation.new(node_index: head)] }
  V1::DebugRequest.new(sub_requests: [plain, ablated].map { |one| V1::DebugSubRequest.new(**one) })
end

def explain(debuggers, request)
  answers = DebugAnswers.read(debuggers.stream_debug(request, deadline:))
  plain, ablated = answers
  puts format("logit difference %.3f, without L1 head 0: %.3f", plain.loss, ablated.loss)
  Nodes.strongest(plain).first(10).each do |row|
    effects = answers.map { |one| one.scalars[:directEffect][row] }
    puts format("%8.3f %8.3f %s", *effects, Nodes.spelling(plain.nodes[row]))
  end
  answers
end

# Asks for a layer that does not exist and for no nodes; the server names both faults.
def meet_an_error(debuggers, request)
  wrong = V1::DebugRequest.decode(V1::DebugRequest.encode(request))
  wrong.sub_requests[1].top_and_bottom_k = 0
  wrong.sub_requests[1].node_ablations[0].node_index.layer_index = 1000
  DebugAnswers.read(debuggers.stream_debug(wrong, deadline:))
  raise "a wrong request was taken"
rescue GRPC::BadStatus => error
  failure = Failure.new(error)
  puts "refused with #{failure.code}, #{failure.reason}:"
  failure.field_violations.each { |one| puts "  #{one.field}: #{one.description}" }
  failure
end

# What differs from a prompt of as many tokens with the names exchanged: effects are then of the difference.
def compare(debuggers)
  compared = V1::DebugSubRequest.new(prompt: PROMPT, baseline_prompts: [BASELINE], target_tokens: [" her"],
                                     distractor_tokens: [" him"], top_and_bottom_k: 10)
  answers = debuggers.debug(V1::DebugRequest.new(sub_requests: [compared]), deadline:).sub_responses
  # A server that is older than baselines skips them, and its effects are of something else.
  raise "the server does not know baselines" if answers[0].baselines.empty?

  puts "compared with: #{answers[0].baselines[0].token_strings.to_a.join}"
end

# Hangs up as soon as a worker has taken up a long call; the server then stops the work.
def cancel_stream(debuggers, request, model)
  long = V1::DebugRequest.new(sub_requests: [request.sub_requests[0]] * model.limits.max_sub_requests)
  call = debuggers.stream_debug(long, deadline:, return_op: true)
  call.execute.each { |message| call.cancel if message.event == :started }
  raise "the stream was not cancelled"
rescue GRPC::Cancelled => error
  puts "cancelled: #{Failure.new(error).code}"
end

address, vector_file = ARGV
channel = [address || "127.0.0.1:50051", :this_channel_is_insecure]
models = V1::ModelService::Stub.new(*channel)
debuggers = V1::TransformerDebuggerService::Stub.new(*channel)

model = describe_model(models)
request = request_with_ablation(models)
answers = explain(debuggers, request)
failure = meet_an_error(debuggers, request)
compare(debuggers)
cancel_stream(debuggers, request, model)
VectorFile.new(vector_file).check(model, request, answers, failure) if vector_file
